//! Functions that are called without being written as calls: through an operator, a cast, or as if they
//! were a column of a row.

use pg_query::protobuf as pb;

use super::strings;
use crate::sql::Disguises;
use crate::sql::tree::Ref;

/// Notes what this one node, without its children, may call.
pub(super) fn note(node: Ref<'_>, found: &mut Disguises) {
    match node {
        Ref::ColumnRef(it) => {
            if let [_, .., name] = strings(&it.fields)[..] {
                found.attributes.insert(name.to_owned());
            }
        }
        Ref::AIndirection(it) => {
            let names = strings(&it.indirection);
            found
                .attributes
                .extend(names.into_iter().map(str::to_owned));
        }
        Ref::AExpr(it) => expression(it, found),
        Ref::SubLink(it) => match strings(&it.oper_name).last() {
            Some(name) => operator(name, found),
            None => operator("=", found),
        },
        Ref::SortBy(it) => {
            if let Some(name) = strings(&it.use_op).last() {
                operator(name, found);
            }
        }
        Ref::CaseExpr(it) if it.arg.is_some() => operator("=", found),
        Ref::JoinExpr(it) if it.is_natural || !it.using_clause.is_empty() => operator("=", found),
        Ref::TypeName(it) => {
            if let Some(name) = strings(&it.names).last() {
                found.types.insert((*name).to_owned());
            }
        }
        _ => {}
    }
}

fn expression(it: &pb::AExpr, found: &mut Disguises) {
    use pb::AExprKind as Kind;
    match it.kind() {
        // Named by their keyword.
        Kind::AexprBetween
        | Kind::AexprNotBetween
        | Kind::AexprBetweenSym
        | Kind::AexprNotBetweenSym => ["<", "<=", ">", ">="]
            .iter()
            .for_each(|name| operator(name, found)),
        _ => {
            if let Some(name) = strings(&it.name).last() {
                operator(name, found);
            }
        }
    }
}

fn operator(name: &str, found: &mut Disguises) {
    found.operators.insert(name.to_owned());
}
