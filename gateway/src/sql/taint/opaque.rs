//! What hides SQL from the parser, or values from the masks: looked for in the whole statement before
//! its use of columns is judged.

use pg_query::protobuf as pb;

use super::Masked;
use crate::sql::Place;
use crate::sql::facts::strings;
use crate::sql::tree::{Ref, inner};

pub(super) struct Opaque {
    pub names_masked_table: bool,
    pub refused: Option<(String, Place)>,
}

/// Functions that run SQL they are given as text or read a table named by a value.
const RUN_TEXT: &[&str] = &[
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "cursor_to_xml",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "ts_stat",
    "ts_rewrite",
    "crosstab",
    "crosstab2",
    "crosstab3",
    "crosstab4",
    "crosstabn",
    "connectby",
    "xpath_table",
    "dblink",
    "dblink_build_sql_insert",
    "dblink_build_sql_update",
    "dblink_exec",
    "dblink_open",
    "dblink_send_query",
    "get_raw_page",
    "heap_page_item_attrs",
    "heap_page_items",
    "pg_logical_slot_get_changes",
    "pg_logical_slot_peek_changes",
    "pg_logical_slot_get_binary_changes",
    "pg_logical_slot_peek_binary_changes",
    "pg_read_file",
    "pg_read_binary_file",
];

/// Relations that hold samples of every column's values.
const STATISTICS: &[&str] = &[
    "pg_stats",
    "pg_stats_ext",
    "pg_stats_ext_exprs",
    "pg_statistic",
    "pg_statistic_ext_data",
];

/// Words with which a body says what cannot be found in its text: `U&"card\005fnumber"` is a column, too.
const UNSEARCHABLE: &[&str] = &["execute", "u&\""];

pub(super) fn look(statement: Ref<'_>, masked: Masked<'_>) -> Opaque {
    let mut opaque = Opaque {
        names_masked_table: false,
        refused: None,
    };
    opaque.visit(statement, masked);
    opaque
}

impl Opaque {
    fn refuse(&mut self, masked: Masked<'_>, place: Place) {
        self.refused
            .get_or_insert_with(|| (masked.first_column(), place));
    }

    fn visit(&mut self, node: Ref<'_>, masked: Masked<'_>) {
        match node {
            Ref::RangeVar(it) => {
                self.names_masked_table |= masked.is_table(it);
                if STATISTICS.contains(&it.relname.as_str()) {
                    self.refuse(masked, Place::Statistics);
                }
            }
            Ref::FuncCall(it) if runs_text(it) => self.refuse(masked, Place::SqlInText),
            // CREATE OPERATOR and CREATE AGGREGATE name the functions that they call like types.
            Ref::DefineStmt(it) => self.defined_by(&it.definition, masked),
            Ref::CreateCastStmt(it) => {
                let names = it.func.iter().flat_map(|it| strings(&it.objname));
                if names.last().is_some_and(is_run_text) {
                    self.refuse(masked, Place::SqlInText);
                }
            }
            // Under another schema's name its tables would be others to the rules.
            Ref::RenameStmt(it)
                if it.rename_type() == pb::ObjectType::ObjectSchema
                    && masked.is_schema(&it.subname) =>
            {
                self.refuse(masked, Place::Definition);
            }
            // (anything).card_number: what the composite value holds is not known.
            Ref::AIndirection(it) => {
                let field = strings(&it.indirection)
                    .into_iter()
                    .find_map(|name| masked.column(name));
                if let Some(column) = field {
                    self.refused
                        .get_or_insert((column.to_owned(), Place::WholeRow));
                }
            }
            Ref::DoStmt(it) => self.code(&it.args, masked),
            Ref::CreateFunctionStmt(it) => self.code(&it.options, masked),
            Ref::CreateTableAsStmt(it) => {
                if let Some(Ref::ExecuteStmt(_)) = it.query.as_deref().and_then(inner) {
                    self.refuse(masked, Place::NewTable);
                }
            }
            _ => {}
        }
        // An unexpected node already made the statement unknown (see `facts`).
        let _ = node.children(&mut |child| self.visit(child, masked));
    }

    fn defined_by(&mut self, definition: &[pb::Node], masked: Masked<'_>) {
        let values = definition
            .iter()
            .filter_map(inner)
            .filter_map(|it| match it {
                Ref::DefElem(it) => it.arg.as_deref().and_then(inner),
                _ => None,
            });
        for value in values {
            if let Ref::TypeName(name) = value
                && strings(&name.names)
                    .last()
                    .copied()
                    .is_some_and(is_run_text)
            {
                self.refuse(masked, Place::SqlInText);
            }
        }
    }

    /// A body in another language is searched for the names of masked things; one that builds
    /// statements at run time, or spells names in escapes, cannot be searched.
    fn code(&mut self, options: &[pb::Node], masked: Masked<'_>) {
        for body in bodies(options) {
            let named = masked.rules.iter().any(|rule| {
                [&rule.column, &rule.table]
                    .iter()
                    .any(|name| body.contains(&name.to_lowercase()))
            });
            let mut opaque = RUN_TEXT.iter().chain(STATISTICS).chain(UNSEARCHABLE);
            let renames_schema = ["schema", "rename"].iter().all(|word| body.contains(word));
            if named || renames_schema || opaque.any(|word| body.contains(word)) {
                self.refuse(masked, Place::Code);
            }
        }
    }
}

fn runs_text(it: &pb::FuncCall) -> bool {
    strings(&it.funcname)
        .last()
        .copied()
        .is_some_and(is_run_text)
}

fn is_run_text(function: &str) -> bool {
    RUN_TEXT.contains(&function.to_lowercase().as_str())
}

/// The body of the code that a statement runs or makes, in lower case. The catalogue tells which of the
/// relations in it show masked columns under names of their own.
pub(in crate::sql) fn code(statement: Ref<'_>) -> Option<String> {
    match statement {
        Ref::DoStmt(it) => bodies(&it.args).next(),
        Ref::CreateFunctionStmt(it) => bodies(&it.options).next(),
        _ => None,
    }
}

fn bodies(options: &[pb::Node]) -> impl Iterator<Item = String> {
    options.iter().filter_map(inner).filter_map(|option| {
        let Ref::DefElem(option) = option else {
            return None;
        };
        let mut body = String::new();
        collect_text(option.arg.as_deref(), &mut body);
        (option.defname == "as").then(|| body.to_lowercase())
    })
}

fn collect_text(node: Option<&pb::Node>, text: &mut String) {
    match node.and_then(inner) {
        Some(Ref::String(it)) => text.push_str(&it.sval),
        Some(Ref::List(it)) => it
            .items
            .iter()
            .for_each(|item| collect_text(Some(item), text)),
        _ => {}
    }
}
