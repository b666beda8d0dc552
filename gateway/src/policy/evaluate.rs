//! One operation, decided.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision, Effect, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, Policy, PolicyId, PrincipalConstraint, Request, ResourceConstraint,
    Response, RestrictedExpression,
};

use super::denial::{Denial, WHO_DECIDES};
use super::set::{CREDENTIAL, DATABASE, PolicySet};
use crate::sql::copy::{Copy, Peer};
use crate::sql::{MaskUse, Statement, Table, Verb, unambiguous};

/// Who asks, proven by cgroup and token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    pub agent: String,
    pub subject: String,
    pub groups: Vec<String>,
    pub process: Process,
}

/// The process that connected. What could not be established with certainty is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Process {
    pub uid: u32,
    /// Path of the running program.
    pub exe: Option<String>,
    /// SHA-256 of the running program's file, in lower-case hexadecimal.
    pub exe_sha256: Option<String>,
}

impl Process {
    /// A path without the digest of what lies there proves nothing.
    fn is_known(&self) -> bool {
        self.exe.is_some() && self.exe_sha256.is_some()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Start a session as the target's `user`.
    Connect {
        target: &'a str,
        database: &'a str,
        user: &'a str,
        /// A replication connection.
        replication: bool,
    },
    Sql {
        target: &'a str,
        database: &'a str,
        statement: &'a Statement,
        /// The texts of the parameters it runs with; none where they are not known yet.
        parameters: &'a [String],
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `rule`: the ids of the permitting policies, comma-separated. `login` is of connecting alone.
    Allow {
        rule: String,
        login: Login,
    },
    Deny(Denial),
}

/// What the policies that permit a session choose for it, whatever the agent asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// `@credential`: one of the target's named credentials, in place of its own.
    pub credential: Option<String>,
    /// `@database`: the database that is opened.
    pub database: Option<String>,
}

/// Decides. Pure: the same arguments always give the same verdict.
pub fn evaluate(policies: &PolicySet, principal: &Principal, operation: &Operation<'_>) -> Verdict {
    let decided = match operation {
        Operation::Connect {
            target,
            database,
            user,
            replication,
        } => {
            let facts = [
                text("database", database),
                text("user", user),
                truth("replication", *replication),
            ];
            let doing = match replication {
                true => "replicate database",
                false => "connect to database",
            };
            let subject = format!("{doing} {database} as {user}");
            connect(policies, principal, target, facts, subject)
                .and_then(|rules| Ok((chosen(policies, &rules)?, rules)))
        }
        Operation::Sql {
            target,
            database,
            statement,
            parameters,
        } => {
            let context = statement_context(database, &principal.process, statement, parameters);
            sql(policies, principal, target, statement, context)
                .map(|rules| (Login::default(), rules))
        }
    };
    match decided {
        Ok((login, rules)) => Verdict::Allow {
            rule: rules.into_iter().collect::<Vec<_>>().join(", "),
            login,
        },
        Err(denial) => Verdict::Deny(denial),
    }
}

/// The ids of the policies that permitted something.
type Rules = BTreeSet<String>;

fn connect(
    policies: &PolicySet,
    principal: &Principal,
    target: &str,
    facts: [(String, RestrictedExpression); 3],
    subject: String,
) -> Result<Rules, Denial> {
    let process = process_fact(&principal.process).map_err(|e| broken(&e))?;
    let context =
        Context::from_pairs(facts.into_iter().chain([process])).map_err(|e| broken(&e))?;
    let mut asking = Asking::new(policies, principal, target);
    let question = Question {
        action: "connect".to_owned(),
        resource: asking.target.clone(),
        subject,
    };
    asking.ask(&policies.all, vec![question], context)
}

/// What the permitting policies choose. A policy that chooses nothing leaves the choice to the others.
fn chosen(policies: &PolicySet, rules: &Rules) -> Result<Login, Denial> {
    Ok(Login {
        credential: the_same(policies, rules, CREDENTIAL)?,
        database: the_same(policies, rules, DATABASE)?,
    })
}

/// The annotation's value, if all policies that have it agree.
fn the_same(
    policies: &PolicySet,
    rules: &Rules,
    annotation: &'static str,
) -> Result<Option<String>, Denial> {
    let mut first: Option<(&str, &str)> = None;
    for rule in rules {
        let Some(value) = policies.annotation(&PolicyId::new(rule), annotation) else {
            continue;
        };
        match first {
            None => first = Some((rule, value)),
            Some((_, same)) if same == value => {}
            Some((other, _)) => return Err(Denial::ambiguous(annotation, other, rule)),
        }
    }
    Ok(first.map(|(_, value)| value.to_owned()))
}

fn sql(
    policies: &PolicySet,
    principal: &Principal,
    target: &str,
    statement: &Statement,
    context: Result<Context, cedar_policy::ContextCreationError>,
) -> Result<Rules, Denial> {
    let context = context.map_err(|e| broken(&e))?;
    let mut asking = Asking::new(policies, principal, target);
    let mut rules = Rules::new();
    if let Some(why) = &statement.unknown {
        rules.extend(asking.ask_unknown(why, context.clone())?);
    }
    if let MaskUse::Refused { column, place } = &statement.mask {
        return Err(Denial::masked(column, *place));
    }
    let questions = asking.questions(statement);
    rules.extend(asking.ask(&policies.all, questions, context)?);
    Ok(rules)
}

/// One request to Cedar, and how to speak of it.
struct Question {
    action: String,
    resource: EntityUid,
    subject: String,
}

/// Everything the requests of one operation share.
struct Asking<'a> {
    policies: &'a PolicySet,
    principal: &'a Principal,
    target_name: &'a str,
    agent: EntityUid,
    target: EntityUid,
    entities: Vec<Entity>,
}

impl<'a> Asking<'a> {
    fn new(policies: &'a PolicySet, principal: &'a Principal, target: &'a str) -> Self {
        let types = &policies.types;
        let agent = uid(&types.agent, &principal.agent);
        let target_uid = uid(&types.target, target);
        let groups: HashSet<EntityUid> = principal
            .groups
            .iter()
            .map(|group| uid(&types.group, group))
            .collect();
        let mut entities = vec![Entity::new_no_attrs(target_uid.clone(), HashSet::new())];
        entities.extend(
            groups
                .iter()
                .map(|group| Entity::new_no_attrs(group.clone(), HashSet::new())),
        );
        entities.extend(entity(
            agent.clone(),
            &[("subject", &principal.subject)],
            groups,
        ));
        Self {
            policies,
            principal,
            target_name: target,
            agent,
            target: target_uid,
            entities,
        }
    }

    /// Each verb on each of its tables, each function, each setting.
    fn questions(&mut self, statement: &Statement) -> Vec<Question> {
        let mut questions = vec![];
        for (verb, tables) in &statement.effects {
            let by_setting = match verb {
                Verb::Set => !statement.settings.is_empty(),
                Verb::Show => true,
                // Was asked for at the beginning.
                Verb::Unknown => true,
                _ => false,
            };
            if by_setting {
                continue;
            }
            if tables.is_empty() {
                questions.push(Question {
                    action: verb.action().to_owned(),
                    resource: self.target.clone(),
                    subject: format!("run {}", verb.action()),
                });
            }
            for table in tables {
                questions.push(self.about_table(*verb, table));
            }
        }
        let settings = statement
            .settings
            .iter()
            .map(|name| ("sql:set", name, "change setting"));
        let shows = statement
            .shows
            .iter()
            .map(|name| ("sql:show", name, "show setting"));
        for (action, name, doing) in settings.chain(shows) {
            let resource = self.below_target(&self.policies.types.setting, name, &[("name", name)]);
            questions.push(Question {
                action: action.to_owned(),
                resource,
                subject: format!("{doing} {name}"),
            });
        }
        for name in &statement.functions {
            let name = built_in_name(name);
            let resource =
                self.below_target(&self.policies.types.function, name, &[("name", name)]);
            questions.push(Question {
                action: "sql:function".to_owned(),
                resource,
                subject: format!("call function {name}"),
            });
        }
        questions
    }

    fn about_table(&mut self, verb: Verb, table: &Table) -> Question {
        let schema = schema_of(table);
        let name = full_name(table);
        let attributes = [("schema", schema), ("name", table.name.as_str())];
        let types = &self.policies.types;
        let resource = if takes_tables(verb) {
            self.below_target(&types.table, &name, &attributes)
        } else {
            self.target.clone()
        };
        Question {
            action: verb.action().to_owned(),
            resource,
            subject: format!("run {} on table {name}", verb.action()),
        }
    }

    fn below_target(
        &mut self,
        of_type: &EntityTypeName,
        name: &str,
        attributes: &[(&str, &str)],
    ) -> EntityUid {
        let uid = uid(of_type, &format!("{}/{name}", self.target_name));
        let parents = HashSet::from([self.target.clone()]);
        if !self.entities.iter().any(|entity| entity.uid() == uid) {
            self.entities
                .extend(entity(uid.clone(), attributes, parents));
        }
        uid
    }

    fn ask_unknown(&mut self, why: &str, context: Context) -> Result<Rules, Denial> {
        let question = Question {
            action: Verb::Unknown.action().to_owned(),
            resource: self.target.clone(),
            subject: "run what cannot be analysed".to_owned(),
        };
        let naming = &self.policies.naming_unknown;
        self.ask(naming, vec![question], context)
            .map_err(|denial| match denial.rule.as_str() {
                "default-deny" => Denial::unknown(why),
                _ => denial,
            })
    }

    fn ask(
        &mut self,
        policies: &cedar_policy::PolicySet,
        questions: Vec<Question>,
        context: Context,
    ) -> Result<Rules, Denial> {
        let entities = self.entities_for(&questions)?;
        let authorizer = Authorizer::new();
        let mut rules = Rules::new();
        for question in questions {
            let action = uid(&self.policies.types.action, &question.action);
            let request = Request::new(
                self.agent.clone(),
                action,
                question.resource.clone(),
                context.clone(),
                None,
            )
            .map_err(|e| broken(&e))?;
            let response = authorizer.is_authorized(&request, policies, &entities);
            if let Some(error) = response.diagnostics().errors().next() {
                // Cedar leaves a policy that fails out; one that forbids must not vanish that way.
                return Err(broken(error));
            }
            if response.decision() == Decision::Deny {
                return Err(self.denial(&question, &response, &entities));
            }
            rules.extend(response.diagnostics().reason().map(|id| id.to_string()));
        }
        Ok(rules)
    }

    /// Only the actions that are asked about, with their groups: Cedar computes the closure of the
    /// hierarchy for every set of entities.
    fn entities_for(&self, questions: &[Question]) -> Result<Entities, Denial> {
        let known = &self.policies.actions;
        let asked: BTreeSet<EntityUid> = questions
            .iter()
            .map(|question| uid(&self.policies.types.action, &question.action))
            .collect();
        let groups = asked
            .iter()
            .filter_map(|action| known.ancestors(action))
            .flatten()
            .cloned();
        let needed: BTreeSet<EntityUid> = groups.chain(asked.iter().cloned()).collect();
        let actions = needed
            .iter()
            .filter_map(|action| known.get(action))
            .cloned();
        let all = self.entities.iter().cloned().chain(actions);
        Entities::from_entities(all, None).map_err(|e| broken(&e))
    }

    fn denial(&self, question: &Question, response: &Response, entities: &Entities) -> Denial {
        let message = format!(
            "agent {} may not {} (target {})",
            self.principal.agent, question.subject, self.target_name
        );
        let mut forbidding: Vec<&PolicyId> = response.diagnostics().reason().collect();
        forbidding.sort();
        match forbidding.first() {
            Some(id) => self.forbidden(id, message),
            None => self.not_permitted(question, message, entities),
        }
    }

    fn forbidden(&self, id: &PolicyId, message: String) -> Denial {
        let reason = self
            .policies
            .annotation(id, "reason")
            .unwrap_or("a policy forbids it.");
        let hint = self
            .policies
            .annotation(id, "hint")
            .unwrap_or("No other policy can permit what this one forbids.");
        Denial {
            rule: id.to_string(),
            message,
            detail: format!("Denied by rule {id}: {reason}"),
            hint: format!("{hint} {WHO_DECIDES}"),
        }
    }

    /// Says which policy came close, if one did, and else what this agent may do at all.
    fn not_permitted(&self, question: &Question, message: String, entities: &Entities) -> Denial {
        let action = uid(&self.policies.types.action, &question.action);
        let permits = || {
            self.policies
                .all
                .policies()
                .filter(|policy| policy.effect() == Effect::Permit)
        };
        let mine = |policy: &Policy| is_in_principal_scope(policy, &self.agent, entities);
        let close = permits()
            .filter(|policy| mine(policy))
            .filter(|policy| is_in_action_scope(policy, &action, entities))
            .filter(|policy| is_in_resource_scope(policy, &question.resource, entities))
            .min_by_key(|policy| (policy.annotation("hint").is_none(), policy.id().clone()));
        let (detail, hint) = match close {
            Some(policy) => (
                format!(
                    "Denied by rule default-deny: no policy permits it; {} covers the action, but its condition does not hold here.",
                    policy.id()
                ),
                policy.annotation("hint").map(str::to_owned),
            ),
            None => (
                "Denied by rule default-deny: no policy permits it.".to_owned(),
                None,
            ),
        };
        let hint = hint.unwrap_or_else(|| {
            let allowed: BTreeSet<String> = permits()
                .filter(|policy| mine(policy))
                .flat_map(actions_named)
                .collect();
            match allowed.is_empty() {
                true => format!("No policy permits agent {} anything.", self.principal.agent),
                false => format!(
                    "Permitted to this agent, within limits: {}.",
                    summary(&allowed)
                ),
            }
        });
        Denial {
            rule: "default-deny".to_owned(),
            message,
            detail,
            hint: format!("{hint} {WHO_DECIDES}"),
        }
    }
}

/// Verbs whose resource may be a table in the schema; the others' is the target.
fn takes_tables(verb: Verb) -> bool {
    !matches!(
        verb,
        Verb::Explain
            | Verb::Notify
            | Verb::Transaction
            | Verb::Prepare
            | Verb::Execute
            | Verb::Deallocate
            | Verb::Declare
            | Verb::Fetch
            | Verb::Close
            | Verb::Listen
            | Verb::Unlisten
            | Verb::Discard
            | Verb::Set
            | Verb::Show
            | Verb::Unknown
    )
}

/// The schema a table counts as: PostgreSQL looks into pg_catalog first, where names begin with `pg_`.
fn schema_of(table: &Table) -> &str {
    match &table.schema {
        Some(schema) => schema,
        None if table.name.starts_with("pg_") => "pg_catalog",
        None => "public",
    }
}

fn full_name(table: &Table) -> String {
    format!(
        "{}.{}",
        unambiguous(schema_of(table)),
        unambiguous(&table.name)
    )
}

fn built_in_name(name: &str) -> &str {
    name.strip_prefix("pg_catalog.").unwrap_or(name)
}

#[expect(
    clippy::result_large_err,
    reason = "Cedar's own error, returned where a policy set is broken and nowhere on the way of a statement"
)]
fn statement_context(
    database: &str,
    process: &Process,
    statement: &Statement,
    parameters: &[String],
) -> Result<Context, cedar_policy::ContextCreationError> {
    let tables =
        |tables: &BTreeSet<Table>| -> BTreeSet<String> { tables.iter().map(full_name).collect() };
    let verbs = statement
        .effects
        .keys()
        .map(|verb| verb.action().to_owned())
        .collect();
    let functions = statement
        .functions
        .iter()
        .map(|name| built_in_name(name).to_owned())
        .collect();
    let copy = statement.copy.as_ref().map(copy_fact).transpose()?;
    let facts = [
        text("database", database),
        process_fact(process)?,
        set("verbs", verbs),
        set("reads", tables(&statement.reads)),
        set("writes", tables(&statement.writes)),
        set("functions", functions),
        set("settings", statement.settings.clone()),
        set("shows", statement.shows.clone()),
        set("parameters", parameters.iter().cloned().collect()),
    ];
    Context::from_pairs(facts.into_iter().chain(copy))
}

#[expect(
    clippy::result_large_err,
    reason = "Cedar's own error; a record of different names cannot fail"
)]
fn copy_fact(
    copy: &Copy,
) -> Result<(String, RestrictedExpression), cedar_policy::ContextCreationError> {
    let direction = if copy.from { "from" } else { "to" };
    let format = copy.options.as_ref().map(|options| options.format.name());
    let peer = match &copy.peer {
        Peer::Client => None,
        Peer::File(file) => Some(text("file", file)),
        Peer::Program(program) => Some(text("program", program)),
    };
    let facts = [text("direction", direction)]
        .into_iter()
        .chain(format.map(|format| text("format", format)))
        .chain(peer);
    let record = RestrictedExpression::new_record(facts)?;
    Ok(("copy".to_owned(), record))
}

#[expect(
    clippy::result_large_err,
    reason = "Cedar's own error; a record of different names cannot fail"
)]
fn process_fact(
    process: &Process,
) -> Result<(String, RestrictedExpression), cedar_policy::ContextCreationError> {
    let mut facts = vec![
        (
            "known".to_owned(),
            RestrictedExpression::new_bool(process.is_known()),
        ),
        (
            "uid".to_owned(),
            RestrictedExpression::new_long(process.uid.into()),
        ),
    ];
    facts.extend(process.exe.as_deref().map(|exe| text("exe", exe)));
    let digest = process.exe_sha256.as_deref();
    facts.extend(digest.map(|digest| text("exe_sha256", digest)));
    let record = RestrictedExpression::new_record(facts)?;
    Ok(("process".to_owned(), record))
}

fn text(name: &str, value: &str) -> (String, RestrictedExpression) {
    (
        name.to_owned(),
        RestrictedExpression::new_string(value.to_owned()),
    )
}

fn truth(name: &str, value: bool) -> (String, RestrictedExpression) {
    (name.to_owned(), RestrictedExpression::new_bool(value))
}

fn set(name: &str, values: BTreeSet<String>) -> (String, RestrictedExpression) {
    let values = values.into_iter().map(RestrictedExpression::new_string);
    (name.to_owned(), RestrictedExpression::new_set(values))
}

fn uid(of_type: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(of_type.clone(), EntityId::new(id))
}

/// Attributes are plain strings, which cannot fail to evaluate; without them the policies that use
/// them fail, and that denies.
fn entity(
    uid: EntityUid,
    attributes: &[(&str, &str)],
    parents: HashSet<EntityUid>,
) -> Option<Entity> {
    let attributes: HashMap<String, RestrictedExpression> = attributes
        .iter()
        .map(|(name, value)| text(name, value))
        .collect();
    Entity::new(uid, attributes, parents).ok()
}

/// The policies could not be asked.
fn broken(error: &dyn std::error::Error) -> Denial {
    Denial {
        rule: "policy-error".to_owned(),
        message: "the gateway's policies could not be evaluated".to_owned(),
        detail: format!("Denied by rule policy-error: {error}"),
        hint: format!("The statement is not at fault. {WHO_DECIDES}"),
    }
}

fn is_in_principal_scope(policy: &Policy, agent: &EntityUid, entities: &Entities) -> bool {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => true,
        PrincipalConstraint::In(group) => is_in(agent, &group, entities),
        PrincipalConstraint::Eq(one) => *agent == one,
        PrincipalConstraint::Is(of_type) => *agent.type_name() == of_type,
        PrincipalConstraint::IsIn(of_type, group) => {
            *agent.type_name() == of_type && is_in(agent, &group, entities)
        }
    }
}

fn is_in_action_scope(policy: &Policy, action: &EntityUid, entities: &Entities) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::In(groups) => groups.iter().any(|group| is_in(action, group, entities)),
        ActionConstraint::Eq(one) => *action == one,
    }
}

fn is_in_resource_scope(policy: &Policy, resource: &EntityUid, entities: &Entities) -> bool {
    match policy.resource_constraint() {
        ResourceConstraint::Any => true,
        ResourceConstraint::In(parent) => is_in(resource, &parent, entities),
        ResourceConstraint::Eq(one) => *resource == one,
        ResourceConstraint::Is(of_type) => *resource.type_name() == of_type,
        ResourceConstraint::IsIn(of_type, parent) => {
            *resource.type_name() == of_type && is_in(resource, &parent, entities)
        }
    }
}

fn is_in(child: &EntityUid, parent: &EntityUid, entities: &Entities) -> bool {
    child == parent || entities.is_ancestor_of(parent, child)
}

fn actions_named(policy: &Policy) -> Vec<String> {
    match policy.action_constraint() {
        ActionConstraint::Any => vec!["everything".to_owned()],
        ActionConstraint::In(actions) => actions
            .iter()
            .map(|action| action.id().unescaped().to_owned())
            .collect(),
        ActionConstraint::Eq(action) => vec![action.id().unescaped().to_owned()],
    }
}

/// What is permitted, as one would type it. Reading comes first: it is what most are looking for.
fn summary(allowed: &BTreeSet<String>) -> String {
    let mut keywords: Vec<String> = Vec::new();
    for action in allowed {
        for keyword in keywords_of(action) {
            if !keywords.contains(&keyword) {
                keywords.push(keyword);
            }
        }
    }
    keywords.sort_by_key(|keyword| keyword != "SELECT");
    keywords.join(", ")
}

fn keywords_of(action: &str) -> Vec<String> {
    let group: &[&str] = match action {
        // Part of every statement: naming them helps nobody.
        "connect" | "sql:function" => &[],
        "sql:read" => &["SELECT", "EXPLAIN"],
        "sql:write" => &["INSERT", "UPDATE", "DELETE"],
        "sql:session" => &["SET", "SHOW", "transactions", "cursors"],
        "sql:admin" => &["DDL", "administration"],
        verb => {
            let verb = verb.strip_prefix("sql:").unwrap_or(verb);
            return vec![verb.replace('-', " ").to_uppercase()];
        }
    };
    group.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests;
