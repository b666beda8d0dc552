//! Statements that change definitions or move data, and name a masked table.
//!
//! Dropping, commenting, granting, vacuuming a masked table is harmless to its values. Renaming it,
//! giving it a parent table, a trigger, a rule or a publication lets its values out under a name that
//! no mask rule knows. What is not known to be harmless is refused.

use pg_query::protobuf as pb;

use super::{Masked, Output, Source, Walk};
use crate::sql::Place;
use crate::sql::facts::strings;
use crate::sql::tree::{Ref, inner};

impl<'m> Walk<'m> {
    /// Called for every statement that names a masked table and is not a query.
    pub(super) fn definition(&mut self, node: Ref<'_>) {
        self.place = Place::Definition;
        match node {
            Ref::AlterTableStmt(it) => self.alter_table(it),
            Ref::RenameStmt(it) => self.rename(it),
            Ref::IndexStmt(it) => self.about(it.relation.as_ref(), node),
            Ref::CreatePolicyStmt(it) => self.about(it.table.as_ref(), node),
            Ref::AlterPolicyStmt(it) => self.about(it.table.as_ref(), node),
            Ref::CreateStatsStmt(it) => {
                self.scopes.push(self.sources(&it.relations));
                self.children(node);
                self.scopes.pop();
            }
            Ref::RuleStmt(it) => self.rule(it),
            Ref::CreateStmt(it) => self.create_table(it, node),
            Ref::CreateFunctionStmt(it) => self.function_body(it.sql_body.as_deref()),
            Ref::CreateSchemaStmt(it) => {
                it.schema_elts
                    .iter()
                    .filter_map(inner)
                    .for_each(|part| self.statement(part));
            }
            Ref::DropStmt(_)
            | Ref::CommentStmt(_)
            | Ref::GrantStmt(_)
            | Ref::TruncateStmt(_)
            | Ref::LockStmt(_)
            | Ref::VacuumStmt(_)
            | Ref::ClusterStmt(_)
            | Ref::ReindexStmt(_)
            | Ref::AlterSeqStmt(_)
            | Ref::CreateSeqStmt(_)
            | Ref::ConstraintsSetStmt(_)
            | Ref::AlterOwnerStmt(_) => {}
            // These take arguments only; a sub-select among them is visited as one.
            Ref::ExecuteStmt(_) | Ref::CallStmt(_) => {
                self.place = Place::Expression;
                self.children(node);
            }
            _ => self.refuse(self.masked.first_column(), Place::Definition),
        }
    }

    /// Visits a statement with its table in scope.
    fn about(&mut self, table: Option<&pb::RangeVar>, node: Ref<'_>) {
        self.scopes.push(self.target_source(table, None));
        self.children(node);
        self.scopes.pop();
    }

    fn alter_table(&mut self, it: &pb::AlterTableStmt) {
        use pb::AlterTableType as Type;
        self.scopes
            .push(self.target_source(it.relation.as_ref(), None));
        for command in it.cmds.iter().filter_map(inner) {
            let Ref::AlterTableCmd(command) = command else {
                self.visit(command);
                continue;
            };
            // Under a parent table, or as a partition, its rows have that table's origin.
            let moves_rows = matches!(
                command.subtype(),
                Type::AtAddInherit
                    | Type::AtAttachPartition
                    | Type::AtDetachPartition
                    | Type::AtAddOf
            );
            if moves_rows {
                self.refuse(self.masked.first_column(), Place::Definition);
            }
            self.names(&[command.name.as_str()]);
            if let Some(Ref::Constraint(constraint)) = command.def.as_deref().and_then(inner) {
                self.names(&strings(&constraint.keys));
                self.names(&strings(&constraint.fk_attrs));
            }
            self.one(&command.def);
        }
        self.scopes.pop();
    }

    /// Refuses when one of `names` is a masked column of the table in scope.
    fn names(&mut self, names: &[&str]) {
        let masked = names.iter().find_map(|name| {
            self.scopes
                .iter()
                .flatten()
                .find_map(|source: &Source<'_>| source.masked(name))
        });
        if let Some(column) = masked {
            self.refuse(column, Place::Definition);
        }
    }

    /// A column that is not masked may be renamed, but not to a masked name.
    fn rename(&mut self, it: &pb::RenameStmt) {
        let columns = it
            .relation
            .as_ref()
            .map(|table| self.masked.columns_of_var(table))
            .unwrap_or_default();
        let masked = |name: &str| columns.iter().any(|column| Masked::same(column, name));
        let harmless = match it.rename_type() {
            pb::ObjectType::ObjectColumn => !masked(&it.subname) && !masked(&it.newname),
            pb::ObjectType::ObjectTabconstraint
            | pb::ObjectType::ObjectTrigger
            | pb::ObjectType::ObjectPolicy
            | pb::ObjectType::ObjectRule => true,
            _ => false,
        };
        if !harmless {
            self.refuse(self.masked.first_column(), Place::Definition);
        }
    }

    fn rule(&mut self, it: &pb::RuleStmt) {
        self.scopes
            .push(self.target_source(it.relation.as_ref(), None));
        self.one(&it.where_clause);
        for action in it.actions.iter().filter_map(inner) {
            self.query(action, Output::Inside(Place::Definition));
        }
        self.scopes.pop();
    }

    /// Foreign keys and LIKE copy no values; a child or partition takes over rows.
    fn create_table(&mut self, it: &pb::CreateStmt, node: Ref<'_>) {
        if !self.sources(&it.inh_relations).is_empty() {
            self.refuse(self.masked.first_column(), Place::Definition);
        }
        self.children(node);
    }

    fn function_body(&mut self, body: Option<&pb::Node>) {
        match body.and_then(inner) {
            Some(Ref::List(list)) => list
                .items
                .iter()
                .for_each(|item| self.function_body(Some(item))),
            Some(Ref::ReturnStmt(it)) => self.at(Place::Code, |walk| walk.one(&it.returnval)),
            Some(statement) => self.query(statement, Output::Inside(Place::Code)),
            None => {}
        }
    }
}
