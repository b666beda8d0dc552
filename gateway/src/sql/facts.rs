//! The verbs, tables, functions and settings of one parsed statement.
//!
//! One walk over the tree. Two things make it more than a search: the *role* in which a table name
//! stands (what an INSERT writes, what a sub-select reads), and the names of WITH queries, which hide
//! tables of the same name exactly where PostgreSQL lets them.

mod disguises;

use std::collections::{BTreeMap, BTreeSet};

use pg_query::protobuf as pb;

use super::tree::{Ref, Unexpected, inner};
use super::{Disguises, Table, Verb, unambiguous};

type Effects = BTreeMap<Verb, BTreeSet<Table>>;

/// Everything gathered from one statement.
pub(super) struct Gathered {
    pub verb: Verb,
    pub effects: Effects,
    pub functions: BTreeSet<String>,
    pub settings: BTreeSet<String>,
    pub shows: BTreeSet<String>,
    pub disguises: Disguises,
    pub binary_cursor: bool,
    /// Why the statement must count as unknown, if it must.
    pub doubt: Option<String>,
}

/// CURSOR_OPT_BINARY of PostgreSQL's parsenodes.h.
const CURSOR_OPT_BINARY: i32 = 0x0001;

pub(super) fn gather(statement: Ref<'_>) -> Gathered {
    let mut walk = Walk::new();
    walk.statement(statement);
    let mut gathered = walk.found;
    match top_verb(statement) {
        Some(verb) => gathered.verb = verb,
        None => doubt(
            &mut gathered,
            format!("{} is not a statement", statement.name()),
        ),
    }
    if gathered.effects.contains_key(&Verb::Unknown) {
        doubt(
            &mut gathered,
            "it is a kind of statement that is not known".to_owned(),
        );
    }
    if writes_settings_view(&gathered.effects) {
        doubt(
            &mut gathered,
            "it changes settings through pg_settings".to_owned(),
        );
    }
    gathered
}

pub(super) fn reads_and_writes(effects: &Effects) -> (BTreeSet<Table>, BTreeSet<Table>) {
    let reads = |verb: &Verb| matches!(verb, Verb::Select | Verb::CopyTo);
    let side = |wanted: bool| {
        effects
            .iter()
            .filter(|(verb, _)| reads(verb) == wanted)
            .flat_map(|(_, tables)| tables.iter().cloned())
            .collect()
    };
    (side(true), side(false))
}

/// The first doubt is the one that is told.
fn doubt(gathered: &mut Gathered, why: String) {
    gathered.doubt.get_or_insert(why);
}

/// An UPDATE of this view is a SET that no other check would see.
fn writes_settings_view(effects: &Effects) -> bool {
    [Verb::Update, Verb::Merge]
        .iter()
        .filter_map(|verb| effects.get(verb))
        .flatten()
        .any(|table| table.name == "pg_settings")
}

/// What the statement as a whole is called; differs from the grammar's kind for a few.
fn top_verb(statement: Ref<'_>) -> Option<Verb> {
    match statement {
        Ref::CopyStmt(copy) => Some(copy_verb(copy)),
        Ref::TransactionStmt(it) => Some(transaction_verb(it)),
        Ref::VariableSetStmt(it) => Some(set_verb(it)),
        other => other.verb(),
    }
}

fn copy_verb(copy: &pb::CopyStmt) -> Verb {
    match (copy.is_program, copy.filename.is_empty(), copy.is_from) {
        (true, _, _) => Verb::CopyProgram,
        (false, false, _) => Verb::CopyFile,
        (false, true, true) => Verb::CopyFrom,
        (false, true, false) => Verb::CopyTo,
    }
}

fn transaction_verb(it: &pb::TransactionStmt) -> Verb {
    use pb::TransactionStmtKind as Kind;
    match it.kind() {
        Kind::TransStmtPrepare
        | Kind::TransStmtCommitPrepared
        | Kind::TransStmtRollbackPrepared => Verb::TwoPhase,
        Kind::Undefined => Verb::Unknown,
        Kind::TransStmtBegin
        | Kind::TransStmtStart
        | Kind::TransStmtCommit
        | Kind::TransStmtRollback
        | Kind::TransStmtSavepoint
        | Kind::TransStmtRelease
        | Kind::TransStmtRollbackTo => Verb::Transaction,
    }
}

/// `SET TRANSACTION` concerns the current transaction only.
fn set_verb(it: &pb::VariableSetStmt) -> Verb {
    match it.kind() {
        pb::VariableSetKind::VarSetMulti if it.name.starts_with("TRANSACTION") => Verb::Transaction,
        _ => Verb::Set,
    }
}

struct Walk {
    found: Gathered,
    /// The verb under which a table name that is met next counts.
    role: Verb,
    /// Names of the WITH queries visible here.
    with_names: Vec<String>,
}

impl Walk {
    fn new() -> Self {
        Self {
            found: Gathered {
                verb: Verb::Unknown,
                effects: Effects::new(),
                functions: BTreeSet::new(),
                settings: BTreeSet::new(),
                shows: BTreeSet::new(),
                disguises: Disguises::default(),
                binary_cursor: false,
                doubt: None,
            },
            role: Verb::Select,
            with_names: vec![],
        }
    }

    /// A node that stands as a statement of its own: a SELECT there counts as one even without tables.
    fn statement(&mut self, node: Ref<'_>) {
        if let Ref::SelectStmt(_) = node {
            self.effect(Verb::Select);
        }
        self.visit(node);
    }

    fn nested(&mut self, query: &Option<Box<pb::Node>>) {
        if let Some(node) = query.as_deref().and_then(inner) {
            self.statement(node);
        }
    }

    fn visit(&mut self, node: Ref<'_>) {
        disguises::note(node, &mut self.found.disguises);
        match node {
            Ref::SelectStmt(it) => self.select(it),
            Ref::InsertStmt(it) => self.modify(Verb::Insert, &it.relation, &it.with_clause, node),
            Ref::UpdateStmt(it) => self.modify(Verb::Update, &it.relation, &it.with_clause, node),
            Ref::DeleteStmt(it) => self.modify(Verb::Delete, &it.relation, &it.with_clause, node),
            Ref::MergeStmt(it) => self.modify(Verb::Merge, &it.relation, &it.with_clause, node),
            Ref::CopyStmt(it) => self.copy(it, node),
            Ref::ExplainStmt(it) => {
                self.effect(Verb::Explain);
                self.nested(&it.query);
            }
            Ref::PrepareStmt(it) => {
                self.effect(Verb::Prepare);
                self.nested(&it.query);
            }
            Ref::DeclareCursorStmt(it) => {
                self.effect(Verb::Declare);
                self.found.binary_cursor |= it.options & CURSOR_OPT_BINARY != 0;
                self.nested(&it.query);
            }
            Ref::CreateTableAsStmt(it) => {
                self.effect(Verb::Ddl);
                self.under(Verb::Ddl, |walk| {
                    walk.optional(it.into.as_deref().map(Ref::IntoClause))
                });
                self.nested(&it.query);
            }
            Ref::RefreshMatViewStmt(_) => self.counted(Verb::Maintenance, node),
            Ref::TransactionStmt(it) => self.counted(transaction_verb(it), node),
            Ref::VariableSetStmt(it) => self.set(it),
            Ref::VariableShowStmt(it) => {
                self.effect(Verb::Show);
                self.found.shows.insert(it.name.to_lowercase());
            }
            Ref::DropStmt(it) => self.drop_objects(it),
            Ref::CommentStmt(it) => self.named_object(it.objtype(), it.object.as_deref(), node),
            Ref::SecLabelStmt(it) => self.named_object(it.objtype(), it.object.as_deref(), node),
            Ref::FuncCall(it) => self.function(it, node),
            Ref::RangeVar(it) => self.table(it),
            other => match other.verb() {
                Some(verb) => self.counted(verb, other),
                None => self.children(other),
            },
        }
    }

    fn select(&mut self, it: &pb::SelectStmt) {
        let visible = self.with_names.len();
        self.with(&it.with_clause);
        if let Some(into) = &it.into_clause {
            self.effect(Verb::Ddl);
            self.under(Verb::Ddl, |walk| walk.visit(Ref::IntoClause(into)));
        }
        if !it.locking_clause.is_empty() {
            // The names after OF are aliases of this SELECT's own FROM, not tables.
            self.effect(Verb::Lock);
        }
        self.under(Verb::Select, |walk| {
            walk.children_but(Ref::SelectStmt(it), |child| {
                matches!(
                    child,
                    Ref::WithClause(_) | Ref::IntoClause(_) | Ref::LockingClause(_)
                )
            });
        });
        self.with_names.truncate(visible);
    }

    fn modify(
        &mut self,
        verb: Verb,
        target: &Option<pb::RangeVar>,
        with: &Option<pb::WithClause>,
        node: Ref<'_>,
    ) {
        let visible = self.with_names.len();
        self.with(with);
        self.effect(verb);
        if let Some(target) = target {
            self.table_under(verb, target);
        }
        // FROM and USING hold tables as direct children too: only the target itself is skipped.
        let is_target = |var: &pb::RangeVar| {
            target
                .as_ref()
                .is_some_and(|target| std::ptr::eq(target, var))
        };
        self.under(Verb::Select, |walk| {
            walk.children_but(node, |child| match child {
                Ref::WithClause(_) => true,
                Ref::RangeVar(var) => is_target(var),
                _ => false,
            });
        });
        self.with_names.truncate(visible);
    }

    /// Visits the WITH queries and leaves their names visible. Without RECURSIVE a query sees those
    /// before it, with RECURSIVE all of them.
    fn with(&mut self, with: &Option<pb::WithClause>) {
        let Some(with) = with else { return };
        let queries = with.ctes.iter().filter_map(inner);
        if with.recursive {
            for query in queries.clone() {
                if let Ref::CommonTableExpr(query) = query {
                    self.with_names.push(query.ctename.clone());
                }
            }
        }
        for query in queries {
            self.children(query);
            if let (Ref::CommonTableExpr(query), false) = (query, with.recursive) {
                self.with_names.push(query.ctename.clone());
            }
        }
    }

    fn copy(&mut self, it: &pb::CopyStmt, node: Ref<'_>) {
        let verb = copy_verb(it);
        self.effect(verb);
        self.nested(&it.query);
        self.under(verb, |walk| {
            walk.children_but(node, |child| matches!(child, Ref::SelectStmt(_)));
        });
    }

    fn set(&mut self, it: &pb::VariableSetStmt) {
        self.effect(set_verb(it));
        match it.kind() {
            pb::VariableSetKind::VarSetMulti => self.set_characteristics(it),
            pb::VariableSetKind::VarResetAll => {}
            pb::VariableSetKind::VarReset | pb::VariableSetKind::VarSetDefault => {
                self.found.settings.insert(it.name.to_lowercase());
            }
            pb::VariableSetKind::VarSetValue
            | pb::VariableSetKind::VarSetCurrent
            | pb::VariableSetKind::Undefined => {
                let value = it.args.first().and_then(literal);
                self.setting(&it.name, value.as_deref());
            }
        }
    }

    fn set_characteristics(&mut self, it: &pb::VariableSetStmt) {
        if it.name.starts_with("TRANSACTION") {
            return;
        }
        for option in it.args.iter().filter_map(inner) {
            if let Ref::DefElem(option) = option {
                self.found
                    .settings
                    .insert(format!("default_{}", option.defname));
            }
        }
    }

    fn setting(&mut self, name: &str, value: Option<&str>) {
        let name = name.to_lowercase();
        if let Err(why) = keeps_text_readable(&name, value) {
            doubt(&mut self.found, why);
        }
        self.found.settings.insert(name);
    }

    fn function(&mut self, it: &pb::FuncCall, node: Ref<'_>) {
        let name = dotted(&it.funcname);
        let argument = |index: usize| it.args.get(index).and_then(literal);
        match name.strip_prefix("pg_catalog.").unwrap_or(&name) {
            // With a literal name this is a SET and is judged as one.
            "set_config" => match argument(0) {
                Some(setting) => {
                    self.effect(Verb::Set);
                    self.setting(&setting, argument(1).as_deref());
                }
                None => doubt(
                    &mut self.found,
                    "set_config is called with a computed name".to_owned(),
                ),
            },
            "current_setting" => {
                let shown = argument(0).unwrap_or_else(|| "all".to_owned());
                self.found.shows.insert(shown.to_lowercase());
                self.found.functions.insert(name);
            }
            _ => {
                self.found.functions.insert(name);
            }
        }
        self.children(node);
    }

    fn drop_objects(&mut self, it: &pb::DropStmt) {
        self.effect(Verb::Ddl);
        for object in &it.objects {
            if let Some(table) = object_table(it.remove_type(), object) {
                self.found
                    .effects
                    .entry(Verb::Ddl)
                    .or_default()
                    .insert(table);
            }
            self.optional(inner(object));
        }
    }

    fn named_object(&mut self, kind: pb::ObjectType, object: Option<&pb::Node>, node: Ref<'_>) {
        let table = object.and_then(|object| object_table(kind, object));
        self.found
            .effects
            .entry(Verb::Ddl)
            .or_default()
            .extend(table);
        self.under(Verb::Ddl, |walk| walk.children(node));
    }

    fn counted(&mut self, verb: Verb, node: Ref<'_>) {
        self.effect(verb);
        self.under(verb, |walk| walk.children(node));
    }

    fn effect(&mut self, verb: Verb) {
        self.found.effects.entry(verb).or_default();
    }

    fn table(&mut self, it: &pb::RangeVar) {
        let unqualified = it.schemaname.is_empty() && it.catalogname.is_empty();
        if self.role == Verb::Select && unqualified && self.with_names.contains(&it.relname) {
            return;
        }
        self.table_under(self.role, it);
    }

    fn table_under(&mut self, verb: Verb, it: &pb::RangeVar) {
        let table = Table {
            schema: (!it.schemaname.is_empty()).then(|| it.schemaname.clone()),
            name: it.relname.clone(),
        };
        self.found.effects.entry(verb).or_default().insert(table);
    }

    fn under(&mut self, role: Verb, visit: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.role, role);
        visit(self);
        self.role = before;
    }

    fn optional(&mut self, node: Option<Ref<'_>>) {
        if let Some(node) = node {
            self.visit(node);
        }
    }

    fn children(&mut self, node: Ref<'_>) {
        self.children_but(node, |_| false);
    }

    fn children_but(&mut self, node: Ref<'_>, skip: impl Fn(Ref<'_>) -> bool) {
        let visited = node.children(&mut |child| {
            if !skip(child) {
                self.visit(child);
            }
        });
        if let Err(Unexpected(name)) = visited {
            doubt(
                &mut self.found,
                format!("the parse tree holds an unexpected {name}"),
            );
        }
    }
}

/// The text of later statements must mean to the server what it means to the parser.
fn keeps_text_readable(name: &str, value: Option<&str>) -> Result<(), String> {
    let value: Option<String> = value.map(|value| {
        value
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_lowercase()
    });
    let readable = match (name, value.as_deref()) {
        ("standard_conforming_strings", Some(value)) => {
            matches!(value, "on" | "true" | "yes" | "1" | "t" | "y")
        }
        ("client_encoding", Some(value)) => matches!(value, "utf8" | "unicode" | "sqlascii"),
        ("standard_conforming_strings" | "client_encoding", None) => false,
        _ => true,
    };
    if readable {
        return Ok(());
    }
    Err(format!(
        "it changes {name}, after which statements would be read differently by the server"
    ))
}

/// A string, number or boolean written out, also under a cast.
fn literal(node: &pb::Node) -> Option<String> {
    match inner(node)? {
        Ref::TypeCast(cast) => cast.arg.as_deref().and_then(literal),
        Ref::AConst(constant) => match constant.val.as_ref()? {
            pb::a_const::Val::Sval(value) => Some(value.sval.clone()),
            pb::a_const::Val::Ival(value) => Some(value.ival.to_string()),
            pb::a_const::Val::Fval(value) => Some(value.fval.clone()),
            pb::a_const::Val::Boolval(value) => Some(value.boolval.to_string()),
            pb::a_const::Val::Bsval(_) => None,
        },
        _ => None,
    }
}

/// The strings of a name list; other nodes in it (`*`) are left out.
pub(super) fn strings(names: &[pb::Node]) -> Vec<&str> {
    names
        .iter()
        .filter_map(|name| match inner(name)? {
            Ref::String(name) => Some(name.sval.as_str()),
            _ => None,
        })
        .collect()
}

fn dotted(names: &[pb::Node]) -> String {
    let parts: Vec<_> = strings(names).into_iter().map(unambiguous).collect();
    parts.join(".")
}

/// The table a DROP or COMMENT is about, where the grammar gives its name as a list.
pub(super) fn object_table(kind: pb::ObjectType, object: &pb::Node) -> Option<Table> {
    use pb::ObjectType as Kind;
    let Ref::List(list) = inner(object)? else {
        return None;
    };
    let names = strings(&list.items);
    let names = match kind {
        Kind::ObjectTable
        | Kind::ObjectView
        | Kind::ObjectMatview
        | Kind::ObjectForeignTable
        | Kind::ObjectSequence
        | Kind::ObjectIndex => names.as_slice(),
        // Here the last name is the column's, trigger's … own.
        Kind::ObjectColumn
        | Kind::ObjectTrigger
        | Kind::ObjectRule
        | Kind::ObjectPolicy
        | Kind::ObjectTabconstraint => names.split_last()?.1,
        _ => return None,
    };
    let (name, before) = names.split_last()?;
    Some(Table {
        schema: before.last().map(|schema| (*schema).to_owned()),
        name: (*name).to_owned(),
    })
}
