//! A set of policies: parsed, validated, whole.
//!
//! Whatever this gateway cannot enforce is an error here, not a surprise later: templates, annotations
//! it does not know (`@approval` in a version that asks nobody), a policy without an `@id` to appear in
//! the evidence under, a policy that can never apply.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    ActionConstraint, Effect, Entities, EntityTypeName, EntityUid, Policy, PolicyId,
    ResourceConstraint, Schema, ValidationMode, Validator,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::remembered::Remembered;

/// The vocabulary every policy is checked against.
const SCHEMA: &str = include_str!("schema.cedarschema");

/// The annotations that have a meaning here.
const ANNOTATIONS: [&str; 5] = ["id", "reason", "hint", CREDENTIAL, DATABASE];

/// With which of the target's credentials a permitted session logs in.
pub(super) const CREDENTIAL: &str = "credential";

/// Which database a permitted session opens.
pub(super) const DATABASE: &str = "database";

/// PostgreSQL's `NAMEDATALEN` without the NUL: a longer name is another one, cut short.
const LONGEST_DATABASE: usize = 63;

/// Rule ids that decisions made without any policy appear under.
const RESERVED: [&str; 10] = [
    "default-deny",
    "policy-error",
    "cancel:",
    "mask:",
    "policy:",
    "protocol:",
    "session:",
    "sql:",
    "startup:",
    "target:",
];

/// An id goes into the log, the evidence and the agent's error message.
const LONGEST_ID: usize = 64;

/// Policies that were accepted together.
pub struct PolicySet {
    /// SHA-256 over the files' names and contents, hexadecimal.
    pub hash: String,
    pub(super) all: cedar_policy::PolicySet,
    /// What decides about `sql:unknown`: the permits that name it, and every forbid.
    pub(super) naming_unknown: cedar_policy::PolicySet,
    /// The schema's actions with their groups.
    pub(super) actions: Entities,
    pub(super) types: Types,
    places: BTreeMap<String, (PathBuf, usize)>,
    looks_at_parameters: bool,
    pub(super) remembered: Remembered,
}

/// The schema's entity types, parsed once.
#[derive(Debug, Clone)]
pub(super) struct Types {
    pub agent: EntityTypeName,
    pub group: EntityTypeName,
    pub target: EntityTypeName,
    pub table: EntityTypeName,
    pub function: EntityTypeName,
    pub setting: EntityTypeName,
    pub action: EntityTypeName,
}

/// One thing that is wrong with a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyError {
    pub file: PathBuf,
    /// Counted from 1; 0 when it is about the whole file.
    pub line: usize,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for PolicyError {}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet")
            .field("hash", &self.hash)
            .field("policies", &self.all.num_of_policies())
            .finish()
    }
}

impl PolicySet {
    /// Accepts the files together, or reports everything that is wrong with them.
    pub fn parse(files: &[(PathBuf, String)]) -> Result<Self, Vec<PolicyError>> {
        let shipped = Path::new("schema.cedarschema");
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA)
            .map_err(|e| vec![whole_file(shipped, e.to_string())])?;
        let actions = schema
            .action_entities()
            .map_err(|e| vec![whole_file(shipped, e.to_string())])?;
        let types = Types::parse().map_err(|why| vec![whole_file(shipped, why)])?;

        let mut errors = vec![];
        let mut accepted = Accepted::default();
        for (file, text) in files {
            errors.extend(accepted.add_file(file, text));
        }
        errors.extend(accepted.validate(schema));
        if !errors.is_empty() {
            errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            return Err(errors);
        }
        let looks_at_parameters = accepted.all.policies().any(looks_at_parameters);
        Ok(Self {
            hash: hash(files),
            naming_unknown: accepted.naming_unknown(&types)?,
            looks_at_parameters,
            all: accepted.all,
            places: accepted.places,
            actions,
            types,
            remembered: Remembered::default(),
        })
    }

    /// Every policy whose `@credential` no target in its scope has. `targets`: the names of the credentials of
    /// each target.
    pub fn without_credential(
        &self,
        targets: &BTreeMap<String, BTreeSet<String>>,
    ) -> Vec<PolicyError> {
        let mut errors = Vec::new();
        for policy in self.all.policies() {
            let Some(name) = policy.annotation(CREDENTIAL) else {
                continue;
            };
            let scope = policy.resource_constraint();
            let known = targets
                .iter()
                .filter(|(target, _)| self.is_about(&scope, target))
                .any(|(_, credentials)| credentials.contains(name));
            if known {
                continue;
            }
            let (file, line) = self
                .places
                .get(AsRef::<str>::as_ref(policy.id()))
                .cloned()
                .unwrap_or_default();
            errors.push(PolicyError {
                file,
                line,
                message: format!(
                    "@credential(\"{name}\") names a credential that no target of this policy has"
                ),
                hint: Some(format!(
                    "add a section [targets.NAME.credentials.{name}] to the configuration"
                )),
            });
        }
        errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        errors
    }

    fn is_about(&self, scope: &ResourceConstraint, target: &str) -> bool {
        let named = |entity: &EntityUid| {
            *entity.type_name() == self.types.target && entity.id().unescaped() == target
        };
        match scope {
            ResourceConstraint::Any => true,
            ResourceConstraint::Is(of_type) => *of_type == self.types.target,
            ResourceConstraint::Eq(entity) | ResourceConstraint::In(entity) => named(entity),
            ResourceConstraint::IsIn(of_type, entity) => {
                *of_type == self.types.target && named(entity)
            }
        }
    }

    /// Whether any policy goes by the parameters of statements. If none does, nobody pays for them.
    pub fn looks_at_parameters(&self) -> bool {
        self.looks_at_parameters
    }

    /// A policy's annotation.
    pub(super) fn annotation(&self, id: &PolicyId, name: &str) -> Option<&str> {
        self.all.policy(id)?.annotation(name)
    }
}

impl Types {
    fn parse() -> Result<Self, String> {
        let name = |text: &str| EntityTypeName::from_str(text).map_err(|e| e.to_string());
        Ok(Self {
            agent: name("Sluice::Agent")?,
            group: name("Sluice::Group")?,
            target: name("Sluice::Target")?,
            table: name("Sluice::Table")?,
            function: name("Sluice::Function")?,
            setting: name("Sluice::Setting")?,
            action: name("Sluice::Action")?,
        })
    }
}

/// Policies on the way in, by id, with where each was written.
#[derive(Default)]
struct Accepted {
    all: cedar_policy::PolicySet,
    places: BTreeMap<String, (PathBuf, usize)>,
}

impl Accepted {
    fn add_file(&mut self, file: &Path, text: &str) -> Vec<PolicyError> {
        let parsed = match cedar_policy::PolicySet::from_str(text) {
            Ok(parsed) => parsed,
            Err(e) => {
                return e
                    .iter()
                    .map(|e| detailed(file, text, DetailedError::from(e)))
                    .collect();
            }
        };
        let templates = parsed.templates().map(|template| PolicyError {
            file: file.to_owned(),
            line: line_of(text, &template.to_cedar()),
            message: "templates (?principal, ?resource) are not supported".to_owned(),
            hint: Some("write the policy out for each principal or resource".to_owned()),
        });
        let mut errors: Vec<PolicyError> = templates.collect();
        for policy in parsed.policies() {
            let line = policy.to_cedar().map_or(0, |source| line_of(text, &source));
            let error = |(message, hint): (String, String)| PolicyError {
                file: file.to_owned(),
                line,
                message,
                hint: Some(hint),
            };
            match self.add(policy, file, line) {
                Ok(()) => {}
                Err(why) => errors.extend(why.into_iter().map(error)),
            }
        }
        errors
    }

    fn add(
        &mut self,
        policy: &Policy,
        file: &Path,
        line: usize,
    ) -> Result<(), Vec<(String, String)>> {
        let mut wrong: Vec<(String, String)> = policy
            .annotations()
            .filter(|(name, _)| !ANNOTATIONS.contains(name))
            .map(|(name, _)| {
                (
                    format!("@{name} is not enforced by this version"),
                    format!("known annotations are @{}", ANNOTATIONS.join(", @")),
                )
            })
            .collect();
        wrong.extend(misplaced_login(policy));
        match self.id_of(policy) {
            Err(why) => wrong.push(why),
            Ok(id) if wrong.is_empty() => {
                let named = policy.new_id(PolicyId::new(&id));
                self.places.insert(id.clone(), (file.to_owned(), line));
                if let Err(e) = self.all.add(named) {
                    wrong.push((e.to_string(), "choose another @id".to_owned()));
                }
            }
            Ok(_) => {}
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn id_of(&self, policy: &Policy) -> Result<String, (String, String)> {
        let wrong = |message: String, hint: &str| Err((message, hint.to_owned()));
        let Some(id) = policy.annotation("id").filter(|id| !id.is_empty()) else {
            return wrong(
                "the policy has no @id".to_owned(),
                "write @id(\"a-unique-name\") before it: decisions and evidence name it",
            );
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if id.len() > LONGEST_ID || !id.chars().all(plain) {
            return wrong(
                format!("@id(\"{}\") is not usable", id.escape_debug()),
                "use up to 64 of a-z, 0-9, - _ . :",
            );
        }
        if RESERVED.iter().any(|reserved| id.starts_with(reserved)) {
            return wrong(
                format!("@id(\"{id}\") is reserved for the gateway's own rules"),
                "choose another name",
            );
        }
        if let Some((file, line)) = self.places.get(id) {
            let first = format!("@id(\"{id}\") is already used at {}:{line}", file.display());
            return wrong(first, "every policy needs its own @id");
        }
        Ok(id.to_owned())
    }

    /// One error per policy, the one with help first: the validator repeats a mistake in several ways.
    /// Warnings count too: a policy that can never apply is a mistake in something that protects.
    fn validate(&self, schema: Schema) -> Vec<PolicyError> {
        let result = Validator::new(schema).validate(&self.all, ValidationMode::Strict);
        let errors = result
            .validation_errors()
            .map(|e| (e.policy_id(), DetailedError::from(e)));
        let warnings = result
            .validation_warnings()
            .map(|w| (w.policy_id(), DetailedError::from(w)));
        let mut worst: BTreeMap<&str, DetailedError> = BTreeMap::new();
        for (id, error) in errors.chain(warnings) {
            let known = worst.entry(id.as_ref()).or_insert_with(|| error.clone());
            if known.help.is_none() && error.help.is_some() {
                *known = error;
            }
        }
        let located = |(id, error): (&str, DetailedError)| {
            let (file, line) = self.places.get(id).cloned().unwrap_or_default();
            PolicyError {
                file,
                line,
                message: without_generated_names(&error.message),
                hint: error.help,
            }
        };
        worst.into_iter().map(located).collect()
    }

    fn naming_unknown(&self, types: &Types) -> Result<cedar_policy::PolicySet, Vec<PolicyError>> {
        let unknown = EntityUid::from_type_name_and_id(
            types.action.clone(),
            cedar_policy::EntityId::new("sql:unknown"),
        );
        let names_it = |policy: &Policy| match policy.action_constraint() {
            ActionConstraint::Any => false,
            ActionConstraint::In(actions) => actions.contains(&unknown),
            ActionConstraint::Eq(action) => action == unknown,
        };
        let chosen = self
            .all
            .policies()
            .filter(|policy| policy.effect() == Effect::Forbid || names_it(policy))
            .cloned();
        cedar_policy::PolicySet::from_policies(chosen)
            .map_err(|e| vec![whole_file(Path::new(""), e.to_string())])
    }
}

/// `@credential` and `@database` where they have no effect, or cannot have one.
fn misplaced_login(policy: &Policy) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for name in [CREDENTIAL, DATABASE] {
        let Some(value) = policy.annotation(name) else {
            continue;
        };
        if policy.effect() == Effect::Forbid || !may_connect(policy) {
            wrong.push((
                format!("@{name} has an effect on policies that permit connect, and on no others"),
                "write it before a permit whose action is Sluice::Action::\"connect\"".to_owned(),
            ));
        }
        let longest = if name == DATABASE {
            LONGEST_DATABASE
        } else {
            LONGEST_ID
        };
        if value.is_empty() || value.len() > longest || value.contains('\0') {
            wrong.push((
                format!("@{name}(\"{}\") is not a name", value.escape_debug()),
                format!("use 1 to {longest} bytes"),
            ));
        }
    }
    wrong
}

fn may_connect(policy: &Policy) -> bool {
    let connect = |action: &EntityUid| action.id().unescaped() == "connect";
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::In(actions) => actions.iter().any(connect),
        ActionConstraint::Eq(action) => connect(&action),
    }
}

/// Whether the attribute is named anywhere in the policy, of whatever record.
fn looks_at_parameters(policy: &Policy) -> bool {
    // What cannot be looked through may do anything.
    policy
        .to_json()
        .map_or(true, |json| names_parameters(&json))
}

fn names_parameters(json: &serde_json::Value) -> bool {
    use serde_json::Value;
    match json {
        Value::Object(members) => members.iter().any(|(name, value)| {
            let is_it = |name: &str| name == "parameters";
            is_it(name)
                || (name == "attr" && value.as_str().is_some_and(is_it))
                || names_parameters(value)
        }),
        Value::Array(values) => values.iter().any(names_parameters),
        _ => false,
    }
}

fn hash(files: &[(PathBuf, String)]) -> String {
    let mut files: Vec<&(PathBuf, String)> = files.iter().collect();
    files.sort();
    let mut sha = Sha256::new();
    for (file, text) in files {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        for part in [name, text.as_bytes()] {
            // Length first: contents cannot pose as another file.
            sha.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            sha.update(part);
        }
    }
    hex::encode(sha.finalize())
}

fn whole_file(file: &Path, message: String) -> PolicyError {
    PolicyError {
        file: file.to_owned(),
        line: 0,
        message,
        hint: None,
    }
}

fn detailed(file: &Path, text: &str, error: DetailedError) -> PolicyError {
    let offset = error
        .source_locations
        .first()
        .map_or(0, |label| label.loc.start);
    PolicyError {
        file: file.to_owned(),
        line: line_at(text, offset),
        message: error.message,
        hint: error.help,
    }
}

fn line_of(text: &str, source: &str) -> usize {
    text.find(source).map_or(0, |offset| line_at(text, offset))
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Cedar begins its messages with "for policy `x`, ", which the position and the message repeat.
fn without_generated_names(message: &str) -> String {
    match message.split_once("`, ") {
        Some((head, rest)) if head.starts_with("for policy `") => rest.to_owned(),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(PathBuf, String)> = files
            .iter()
            .map(|(file, text)| (file.into(), (*text).to_owned()))
            .collect();
        match PolicySet::parse(&files) {
            Ok(_) => vec![],
            Err(errors) => errors.iter().map(PolicyError::to_string).collect(),
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() {
        let table: [(&str, &str, &[&str]); 15] = [
            (
                "fine",
                "@id(\"a\") permit (principal, action, resource);",
                &[],
            ),
            (
                "no id",
                "\npermit (principal, action, resource);",
                &["p.cedar:2: the policy has no @id"],
            ),
            (
                "empty id",
                "@id(\"\") permit (principal, action, resource);",
                &["p.cedar:1: the policy has no @id"],
            ),
            (
                "odd id",
                "@id(\"a b\") permit (principal, action, resource);",
                &["p.cedar:1: @id(\"a b\") is not usable"],
            ),
            (
                "reserved id",
                "@id(\"mask:x\") permit (principal, action, resource);",
                &["p.cedar:1: @id(\"mask:x\") is reserved"],
            ),
            (
                "two alike",
                "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);",
                &["p.cedar:2: @id(\"a\") is already used at p.cedar:1"],
            ),
            (
                "an annotation that is not enforced",
                "@id(\"a\") @approval(\"dba\") permit (principal, action, resource);",
                &["p.cedar:1: @approval is not enforced"],
            ),
            (
                "a role for those that may not come in",
                "@id(\"a\") @credential(\"x\") forbid (principal, action, resource);",
                &["p.cedar:1: @credential has an effect on policies that permit connect"],
            ),
            (
                "a database for a statement",
                "@id(\"a\") @database(\"x\") permit (principal, action == Sluice::Action::\"sql:select\", resource);",
                &["p.cedar:1: @database has an effect on policies that permit connect"],
            ),
            (
                "no database",
                "@id(\"a\") @database(\"\") permit (principal, action, resource);",
                &["p.cedar:1: @database(\"\") is not a name"],
            ),
            (
                "reserved for the gateway's own",
                "@id(\"policy:ambiguous\") permit (principal, action, resource);",
                &["p.cedar:1: @id(\"policy:ambiguous\") is reserved"],
            ),
            (
                "syntax",
                "@id(\"a\")\npermit (principal, action resource);",
                &["p.cedar:2: unexpected token `resource`"],
            ),
            (
                "unknown action",
                "@id(\"a\") permit (principal, action == Sluice::Action::\"sql:slect\", resource);",
                &["p.cedar:1: unrecognized action"],
            ),
            (
                "unknown attribute",
                "@id(\"a\")\npermit (principal, action == Sluice::Action::\"connect\", resource) when { context.db == \"x\" };",
                &["p.cedar:1: attribute `db`"],
            ),
            (
                "template",
                "@id(\"a\") permit (principal == ?principal, action, resource);",
                &["p.cedar:1: templates"],
            ),
        ];
        for (name, text, expect) in table {
            let got = errors(&[("p.cedar", text)]);
            assert_eq!(got.len(), expect.len(), "{name}: {got:?}");
            for (got, expect) in got.iter().zip(expect) {
                assert!(got.starts_with(expect), "{name}: {got}");
            }
        }
    }

    #[test]
    fn a_credential_must_be_one_of_a_target_in_scope() {
        let errors = |text: &str| -> Vec<String> {
            let set = PolicySet::parse(&[("p.cedar".into(), text.to_owned())]).expect("valid");
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let targets = BTreeMap::from([
                ("shop".to_owned(), names(&["reader"])),
                ("vault".to_owned(), names(&["keeper"])),
            ]);
            let errors = set.without_credential(&targets);
            errors.iter().map(PolicyError::to_string).collect()
        };
        for (name, scope, known) in [
            ("reader", "resource", true),
            ("reader", "resource == Sluice::Target::\"shop\"", true),
            ("reader", "resource in Sluice::Target::\"shop\"", true),
            ("reader", "resource is Sluice::Target", true),
            ("reader", "resource == Sluice::Target::\"vault\"", false),
            ("nobody", "resource", false),
        ] {
            let text = format!(
                "@id(\"a\")\n@credential(\"{name}\")\npermit (principal, action == Sluice::Action::\"connect\", {scope});"
            );
            let got = errors(&text);
            assert_eq!(got.is_empty(), known, "{name} {scope}: {got:?}");
            let expect = format!("p.cedar:1: @credential(\"{name}\") names a credential");
            assert!(
                got.iter().all(|error| error.starts_with(&expect)),
                "{got:?}"
            );
        }
    }

    #[test]
    fn all_errors_come_at_once() {
        let got = errors(&[
            ("b.cedar", "permit (principal, action, resource);"),
            (
                "a.cedar",
                "@id(\"x\") permit (principal, action == Sluice::Action::\"nope\", resource);\npermit (;",
            ),
            (
                "c.cedar",
                "@id(\"y\") permit (principal, action == Sluice::Action::\"nope\", resource);",
            ),
        ]);
        let files: Vec<&str> = got
            .iter()
            .filter_map(|error| error.split(':').next())
            .collect();
        assert_eq!(files, ["a.cedar", "b.cedar", "c.cedar"], "{got:?}");
    }

    #[test]
    fn the_hash_covers_names_and_contents() {
        let hash = |files: &[(&str, &str)]| {
            let files: Vec<(PathBuf, String)> = files
                .iter()
                .map(|(file, text)| (file.into(), (*text).to_owned()))
                .collect();
            PolicySet::parse(&files).expect("valid").hash
        };
        let (a, b) = (
            "@id(\"a\") permit (principal, action, resource);",
            "// nothing",
        );
        let both = hash(&[("a.cedar", a), ("b.cedar", b)]);
        assert_eq!(both.len(), 64);
        assert_eq!(
            both,
            hash(&[("b.cedar", b), ("a.cedar", a)]),
            "the order of files does not matter"
        );
        assert_ne!(both, hash(&[("a.cedar", b), ("b.cedar", a)]));
        assert_ne!(both, hash(&[("a.cedar", a)]));
    }

    #[test]
    fn every_verb_is_an_action_of_the_schema() {
        for verb in crate::sql::Verb::ALL {
            let policy = format!(
                "@id(\"a\") permit (principal, action == Sluice::Action::\"{}\", resource);",
                verb.action()
            );
            assert_eq!(errors(&[("p.cedar", &policy)]), Vec::<String>::new());
        }
    }
}
