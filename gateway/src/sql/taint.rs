//! Where a statement uses masked columns, and whether masking its result still hides them.
//!
//! PostgreSQL says of a result column which table column it *is*, but only when it is one: any
//! expression, cast, aggregate, set operation or copy loses the origin, and a predicate, join or
//! order tells a value without delivering it. So a masked column may be used in one way only: bare
//! (or through `*`) in the top-level target list or RETURNING list. Every other use is refused.
//!
//! There is no catalogue here. A masked table is recognised by its name, in any schema unless the
//! statement names another one; an unqualified column of the right name is taken for the masked one
//! wherever a masked table is in scope; scopes are kept wider than PostgreSQL's, never narrower. What
//! hides a table behind another name (a view, a function) must have mask rules of its own.

mod definition;
mod opaque;

pub(super) use opaque::code;

use std::collections::{BTreeMap, BTreeSet};

use pg_query::protobuf as pb;

use super::copy::MaskedColumn;
use super::facts::strings;
use super::tree::{Ref, inner};
use super::{MaskUse, Place, Table};
use crate::policy::masking::MaskRule;

/// A statement's use of masked tables.
pub(super) struct Taint {
    pub mask: MaskUse,
    /// What is taken from their rows by name. `c.f` is a column or, where `c` has no column `f`, a call
    /// `f(c)` that gets the whole row: only the catalogue knows which.
    pub attributes: Attributes,
    pub copied: Option<Copied>,
}

/// What a COPY … TO STDOUT sends of a masked table.
pub(super) enum Copied {
    Columns {
        width: usize,
        masked: Vec<MaskedColumn>,
    },
    /// All the table's columns.
    Table,
}

type Attributes = BTreeMap<Table, BTreeSet<String>>;

pub(super) fn look(statement: Ref<'_>, masks: &[MaskRule]) -> Taint {
    let without = |mask| Taint {
        mask,
        attributes: Attributes::new(),
        copied: None,
    };
    if masks.is_empty() {
        return without(MaskUse::None);
    }
    let masked = Masked { rules: masks };
    let opaque = opaque::look(statement, masked);
    if let Some((column, place)) = opaque.refused {
        return without(MaskUse::Refused { column, place });
    }
    if !opaque.names_masked_table {
        return without(match statement {
            // Decided when they were prepared or declared; what they deliver carries its origin.
            Ref::ExecuteStmt(_) | Ref::FetchStmt(_) | Ref::CallStmt(_) => MaskUse::Maskable,
            Ref::ExplainStmt(it) if runs_prepared(it) => MaskUse::Maskable,
            _ => MaskUse::None,
        });
    }
    let mut walk = Walk::new(masked);
    walk.statement(statement);
    Taint {
        mask: match walk.refused {
            Some((column, place)) => MaskUse::Refused { column, place },
            None => MaskUse::Maskable,
        },
        attributes: walk.attributes,
        copied: walk.copied,
    }
}

fn runs_prepared(it: &pb::ExplainStmt) -> bool {
    matches!(
        it.query.as_deref().and_then(inner),
        Some(Ref::ExecuteStmt(_))
    )
}

/// The mask rules, asked by name. Names are compared without case: a quoted name that differs only in
/// case is taken for the masked one.
#[derive(Clone, Copy)]
struct Masked<'m> {
    rules: &'m [MaskRule],
}

impl<'m> Masked<'m> {
    fn same(a: &str, b: &str) -> bool {
        a.to_lowercase() == b.to_lowercase()
    }

    /// The masked columns of a table as named in a statement.
    fn columns_of(self, schema: &str, table: &str) -> Vec<&'m str> {
        self.rules
            .iter()
            .filter(|rule| Self::same(&rule.table, table))
            .filter(|rule| schema.is_empty() || Self::same(&rule.schema, schema))
            .map(|rule| rule.column.as_str())
            .collect()
    }

    fn columns_of_var(self, var: &pb::RangeVar) -> Vec<&'m str> {
        self.columns_of(&var.schemaname, &var.relname)
    }

    fn is_schema(self, name: &str) -> bool {
        self.rules.iter().any(|rule| Self::same(&rule.schema, name))
    }

    fn is_table(self, var: &pb::RangeVar) -> bool {
        !self.columns_of_var(var).is_empty()
    }

    /// A column some rule masks, whatever the table.
    fn column(self, name: &str) -> Option<&'m str> {
        self.rules
            .iter()
            .map(|rule| rule.column.as_str())
            .find(|column| Self::same(column, name))
    }

    fn first_column(self) -> String {
        self.rules
            .first()
            .map(|rule| rule.column.clone())
            .unwrap_or_default()
    }
}

/// A masked table in scope: the names it goes by there, and its masked columns.
struct Source<'m> {
    table: Table,
    names: Vec<String>,
    columns: Vec<&'m str>,
}

impl Source<'_> {
    fn goes_by(&self, name: &str) -> bool {
        self.names.iter().any(|own| Masked::same(own, name))
    }

    fn masked(&self, name: &str) -> Option<String> {
        let column = self
            .columns
            .iter()
            .find(|column| Masked::same(column, name));
        column.map(|column| (*column).to_owned())
    }

    fn any_column(&self) -> String {
        self.columns
            .first()
            .map(|column| (*column).to_owned())
            .unwrap_or_default()
    }
}

/// What a column reference turns out to be.
enum Reference {
    Other,
    Column(String),
    Star(String),
    WholeRow(String),
}

/// Whether a SELECT's or RETURNING's rows are the answer itself, so that masking reaches them; if
/// not, the place its masked columns are found in.
#[derive(Clone, Copy)]
enum Output {
    Answer,
    Inside(Place),
}

struct Walk<'m> {
    masked: Masked<'m>,
    /// One list per query level, the innermost last.
    scopes: Vec<Vec<Source<'m>>>,
    place: Place,
    attributes: Attributes,
    copied: Option<Copied>,
    /// The first refused use.
    refused: Option<(String, Place)>,
}

impl<'m> Walk<'m> {
    fn new(masked: Masked<'m>) -> Self {
        Self {
            masked,
            scopes: vec![],
            place: Place::Expression,
            attributes: Attributes::new(),
            copied: None,
            refused: None,
        }
    }

    fn refuse(&mut self, column: String, place: Place) {
        self.refused.get_or_insert((column, place));
    }

    /// A statement whose rows, if it has any, are the answer.
    fn statement(&mut self, node: Ref<'_>) {
        match node {
            Ref::ExplainStmt(it) => self.nested(&it.query),
            Ref::PrepareStmt(it) => self.nested(&it.query),
            Ref::DeclareCursorStmt(it) => self.nested(&it.query),
            Ref::CopyStmt(it) => self.copy(it),
            Ref::CreateTableAsStmt(it) => self.inside(it.query.as_deref(), Place::NewTable),
            Ref::ViewStmt(it) => self.inside(it.query.as_deref(), Place::View),
            other => self.query(other, Output::Answer),
        }
    }

    fn nested(&mut self, query: &Option<Box<pb::Node>>) {
        if let Some(node) = query.as_deref().and_then(inner) {
            self.statement(node);
        }
    }

    fn inside(&mut self, query: Option<&pb::Node>, place: Place) {
        if let Some(node) = query.and_then(inner) {
            self.query(node, Output::Inside(place));
        }
    }

    fn query(&mut self, node: Ref<'_>, output: Output) {
        match node {
            Ref::SelectStmt(it) => drop(self.select(it, output)),
            Ref::InsertStmt(it) => self.insert(it, output),
            Ref::UpdateStmt(it) => self.update(it, output),
            Ref::DeleteStmt(it) => self.delete(it, output),
            Ref::MergeStmt(it) => self.merge(it, output),
            other => self.definition(other),
        }
    }

    /// Returns what of its target list is masked.
    fn select(&mut self, it: &pb::SelectStmt, output: Output) -> Vec<Shown> {
        self.with(it.with_clause.as_ref());
        let output = narrowed(it, output);
        self.scopes.push(self.sources(&it.from_clause));
        for side in [&it.larg, &it.rarg].into_iter().flatten() {
            self.select(side, output);
        }
        self.from(&it.from_clause);
        let shown = self.targets(&it.target_list, output);
        self.at(Place::Predicate, |walk| {
            walk.one(&it.where_clause);
            walk.one(&it.having_clause);
        });
        self.at(Place::Group, |walk| {
            walk.positions(&it.group_clause, &shown);
            walk.each(&it.window_clause);
        });
        self.at(Place::Distinct, |walk| {
            walk.positions(&it.distinct_clause, &shown)
        });
        self.at(Place::Order, |walk| walk.positions(&it.sort_clause, &shown));
        self.at(Place::Expression, |walk| {
            walk.each(&it.values_lists);
            walk.one(&it.limit_offset);
            walk.one(&it.limit_count);
        });
        self.scopes.pop();
        shown
    }

    /// A WITH query sees the outer levels only; its rows are never the answer.
    fn with(&mut self, with: Option<&pb::WithClause>) {
        for query in with
            .into_iter()
            .flat_map(|with| &with.ctes)
            .filter_map(inner)
        {
            if let Ref::CommonTableExpr(query) = query {
                self.inside(query.ctequery.as_deref(), Place::Subselect);
                // SEARCH and CYCLE name columns of the WITH query itself, which has no masked ones.
            }
        }
    }

    /// Visits a target list; what of it is masked, for ORDER BY and GROUP BY by position or name.
    fn targets(&mut self, targets: &[pb::Node], output: Output) -> Vec<Shown> {
        targets
            .iter()
            .filter_map(inner)
            .map(|target| self.target(target, output))
            .collect()
    }

    fn target(&mut self, target: Ref<'_>, output: Output) -> Shown {
        let Ref::ResTarget(target) = target else {
            self.visit(target);
            return Shown::Clear;
        };
        let value = target.val.as_deref().and_then(inner);
        let (Some(Ref::ColumnRef(column)), true) = (value, target.indirection.is_empty()) else {
            let place = match output {
                Output::Answer => Place::Expression,
                Output::Inside(place) => place,
            };
            self.at(place, |walk| walk.one(&target.val));
            return Shown::Clear;
        };
        match (self.reference(column), output) {
            (Reference::Other, _) => {
                self.attribute(column);
                Shown::Clear
            }
            (Reference::WholeRow(column), _) => {
                self.refuse(column, Place::WholeRow);
                Shown::Clear
            }
            (Reference::Column(column), Output::Answer) => Shown::Masked {
                as_name: match target.name.is_empty() {
                    true => column.clone(),
                    false => target.name.clone(),
                },
                column,
            },
            (Reference::Star(_), Output::Answer) => Shown::Star,
            (Reference::Column(column) | Reference::Star(column), Output::Inside(place)) => {
                self.refuse(column, place);
                Shown::Clear
            }
        }
    }

    /// The items of ORDER BY, GROUP BY or DISTINCT ON: besides expressions, positions and output
    /// names of the target list.
    fn positions(&mut self, items: &[pb::Node], shown: &[Shown]) {
        for item in items.iter().filter_map(inner) {
            self.position(item, shown);
        }
    }

    fn position(&mut self, item: Ref<'_>, shown: &[Shown]) {
        match item {
            Ref::SortBy(it) => {
                if let Some(node) = it.node.as_deref().and_then(inner) {
                    self.position(node, shown);
                }
            }
            Ref::GroupingSet(it) => self.positions(&it.content, shown),
            Ref::RowExpr(it) => self.positions(&it.args, shown),
            Ref::AConst(it) => self.position_number(it, shown),
            Ref::ColumnRef(it) => {
                let names = strings(&it.fields);
                let named = |shown: &&Shown| matches!(shown, Shown::Masked { as_name, .. } if names.len() == 1 && Masked::same(as_name, names[0]));
                if let Some(Shown::Masked { as_name, .. }) = shown.iter().find(named) {
                    self.refuse(as_name.clone(), self.place);
                }
                self.visit(item);
            }
            other => self.visit(other),
        }
    }

    /// After a `*` it is not known which column a position means.
    fn position_number(&mut self, it: &pb::AConst, shown: &[Shown]) {
        let Some(pb::a_const::Val::Ival(number)) = &it.val else {
            return;
        };
        let star = shown.iter().any(|shown| matches!(shown, Shown::Star));
        let index = usize::try_from(number.ival)
            .ok()
            .and_then(|number| number.checked_sub(1));
        match index.and_then(|index| shown.get(index)) {
            Some(Shown::Masked { as_name, .. }) => self.refuse(as_name.clone(), self.place),
            _ if star => self.refuse(self.masked.first_column(), self.place),
            _ => {}
        }
    }

    fn insert(&mut self, it: &pb::InsertStmt, output: Output) {
        self.with(it.with_clause.as_ref());
        self.inside(it.select_stmt.as_deref(), Place::Assignment);
        self.scopes
            .push(self.target_source(it.relation.as_ref(), it.returning_clause.as_ref()));
        self.at(Place::Assignment, |walk| walk.each(&it.cols));
        if let Some(conflict) = &it.on_conflict_clause {
            // EXCLUDED is the row the agent itself sent: it is no source here, so it is not masked.
            if let Some(infer) = &conflict.infer {
                self.at(Place::ConflictTarget, |walk| {
                    walk.each(&infer.index_elems);
                    walk.one(&infer.where_clause);
                });
            }
            self.at(Place::Assignment, |walk| walk.each(&conflict.target_list));
            self.at(Place::Predicate, |walk| walk.one(&conflict.where_clause));
        }
        self.returning(it.returning_clause.as_ref(), output);
        self.scopes.pop();
    }

    fn update(&mut self, it: &pb::UpdateStmt, output: Output) {
        self.with(it.with_clause.as_ref());
        let mut sources = self.target_source(it.relation.as_ref(), it.returning_clause.as_ref());
        sources.extend(self.sources(&it.from_clause));
        self.scopes.push(sources);
        self.from(&it.from_clause);
        self.at(Place::Assignment, |walk| walk.each(&it.target_list));
        self.at(Place::Predicate, |walk| walk.one(&it.where_clause));
        self.returning(it.returning_clause.as_ref(), output);
        self.scopes.pop();
    }

    fn delete(&mut self, it: &pb::DeleteStmt, output: Output) {
        self.with(it.with_clause.as_ref());
        let mut sources = self.target_source(it.relation.as_ref(), it.returning_clause.as_ref());
        sources.extend(self.sources(&it.using_clause));
        self.scopes.push(sources);
        self.from(&it.using_clause);
        self.at(Place::Predicate, |walk| walk.one(&it.where_clause));
        self.returning(it.returning_clause.as_ref(), output);
        self.scopes.pop();
    }

    fn merge(&mut self, it: &pb::MergeStmt, output: Output) {
        self.with(it.with_clause.as_ref());
        let mut sources = self.target_source(it.relation.as_ref(), it.returning_clause.as_ref());
        sources.extend(self.sources_of(it.source_relation.as_deref()));
        self.scopes.push(sources);
        if let Some(source) = it.source_relation.as_deref().and_then(inner) {
            self.source(source);
        }
        self.at(Place::Predicate, |walk| walk.one(&it.join_condition));
        for clause in it.merge_when_clauses.iter().filter_map(inner) {
            let Ref::MergeWhenClause(clause) = clause else {
                self.visit(clause);
                continue;
            };
            self.at(Place::Predicate, |walk| walk.one(&clause.condition));
            self.at(Place::Assignment, |walk| {
                walk.each(&clause.target_list);
                walk.each(&clause.values);
            });
        }
        self.returning(it.returning_clause.as_ref(), output);
        self.scopes.pop();
    }

    fn returning(&mut self, clause: Option<&pb::ReturningClause>, output: Output) {
        if let Some(clause) = clause {
            self.targets(&clause.exprs, output);
        }
    }

    fn copy(&mut self, it: &pb::CopyStmt) {
        let to_client = !it.is_from && !it.is_program && it.filename.is_empty();
        match it.query.as_deref().and_then(inner) {
            Some(Ref::SelectStmt(query)) if to_client => self.copied_query(query),
            _ => self.inside(it.query.as_deref(), Place::Copy),
        }
        let Some(table) = &it.relation else { return };
        let listed = strings(&it.attlist);
        let masked = self.copied_columns(table, &listed);
        let some = match listed.is_empty() {
            true => self
                .masked
                .columns_of_var(table)
                .first()
                .map(|it| (*it).to_owned()),
            false => masked.first().map(|masked| masked.column.clone()),
        };
        match some {
            Some(_) if it.is_from => {}
            Some(column) if !to_client => self.refuse(column, Place::Copy),
            Some(_) if listed.is_empty() => self.copied = Some(Copied::Table),
            Some(_) => {
                let width = listed.len();
                self.copied = Some(Copied::Columns { width, masked });
            }
            None => {}
        }
        self.scopes.push(self.sources_of_var(table));
        self.at(Place::Predicate, |walk| walk.one(&it.where_clause));
        self.scopes.pop();
    }

    /// The masked ones among the columns that a COPY lists.
    fn copied_columns(&self, table: &pb::RangeVar, listed: &[&str]) -> Vec<MaskedColumn> {
        let columns = self.masked.columns_of_var(table);
        let is_masked = |name: &str| columns.iter().any(|column| Masked::same(column, name));
        listed
            .iter()
            .enumerate()
            .filter(|(_, name)| is_masked(name))
            .map(|(place, name)| MaskedColumn {
                place,
                table: Some(Table {
                    schema: (!table.schemaname.is_empty()).then(|| table.schemaname.clone()),
                    name: table.relname.clone(),
                }),
                column: (*name).to_owned(),
            })
            .collect()
    }

    /// The data of COPY carries no origin: which of its columns are masked must be known from the query.
    fn copied_query(&mut self, query: &pb::SelectStmt) {
        let shown = self.select(query, Output::Answer);
        let masked: Vec<MaskedColumn> = shown
            .iter()
            .enumerate()
            .filter_map(|(place, shown)| match shown {
                Shown::Masked { column, .. } => Some(MaskedColumn {
                    place,
                    table: None,
                    column: column.clone(),
                }),
                Shown::Clear | Shown::Star => None,
            })
            .collect();
        if shown.iter().any(|shown| matches!(shown, Shown::Star)) {
            self.refuse(self.masked.first_column(), Place::Copy);
        } else if !masked.is_empty() {
            let width = shown.len();
            self.copied = Some(Copied::Columns { width, masked });
        }
    }

    /// The items of FROM: joins that compare masked columns, aliases that rename them, sub-selects.
    fn from(&mut self, items: &[pb::Node]) {
        items
            .iter()
            .filter_map(inner)
            .for_each(|item| self.source(item));
    }

    fn source(&mut self, item: Ref<'_>) {
        match item {
            Ref::RangeVar(it) => {
                if let (Some(column), true) = (
                    self.masked.columns_of_var(it).first(),
                    renames(it.alias.as_ref()),
                ) {
                    self.refuse((*column).to_owned(), Place::ColumnAlias);
                }
            }
            Ref::JoinExpr(it) => self.join(it),
            Ref::RangeSubselect(it) => self.inside(it.subquery.as_deref(), Place::Subselect),
            Ref::RangeTableSample(it) => {
                if let Some(table) = it.relation.as_deref().and_then(inner) {
                    self.source(table);
                }
                self.at(Place::Expression, |walk| {
                    walk.each(&it.args);
                    walk.one(&it.repeatable);
                });
            }
            other => self.at(Place::Expression, |walk| walk.visit(other)),
        }
    }

    fn join(&mut self, it: &pb::JoinExpr) {
        let sides = [it.larg.as_deref(), it.rarg.as_deref()];
        let sources: Vec<Source<'m>> = sides
            .into_iter()
            .flat_map(|side| self.sources_of(side))
            .collect();
        if let Some(source) = sources.first() {
            if it.is_natural {
                self.refuse(source.any_column(), Place::Join);
            }
            if renames(it.alias.as_ref()) {
                self.refuse(source.any_column(), Place::ColumnAlias);
            }
        }
        for name in strings(&it.using_clause) {
            if let Some(column) = sources.iter().find_map(|source| source.masked(name)) {
                self.refuse(column, Place::Join);
            }
        }
        for side in sides.into_iter().flatten().filter_map(inner) {
            self.source(side);
        }
        self.at(Place::Join, |walk| walk.one(&it.quals));
    }

    /// The masked tables that FROM items bring into scope, under every name they can be called by.
    fn sources(&self, items: &[pb::Node]) -> Vec<Source<'m>> {
        items
            .iter()
            .flat_map(|item| self.sources_of(Some(item)))
            .collect()
    }

    fn sources_of(&self, item: Option<&pb::Node>) -> Vec<Source<'m>> {
        match item.and_then(inner) {
            Some(Ref::RangeVar(it)) => self.sources_of_var(it),
            Some(Ref::RangeTableSample(it)) => self.sources_of(it.relation.as_deref()),
            Some(Ref::JoinExpr(it)) => {
                let mut sources = self.sources_of(it.larg.as_deref());
                sources.extend(self.sources_of(it.rarg.as_deref()));
                for alias in [&it.alias, &it.join_using_alias].into_iter().flatten() {
                    for source in &mut sources {
                        source.names.push(alias.aliasname.clone());
                    }
                }
                sources
            }
            // Its masked columns were refused inside.
            _ => vec![],
        }
    }

    fn sources_of_var(&self, var: &pb::RangeVar) -> Vec<Source<'m>> {
        let columns = self.masked.columns_of_var(var);
        if columns.is_empty() {
            return vec![];
        }
        let mut names = vec![var.relname.clone()];
        names.extend(var.alias.iter().map(|alias| alias.aliasname.clone()));
        let table = Table {
            schema: (!var.schemaname.is_empty()).then(|| var.schemaname.clone()),
            name: var.relname.clone(),
        };
        vec![Source {
            table,
            names,
            columns,
        }]
    }

    /// The target of a data-modifying statement, also as the OLD and NEW of its RETURNING list.
    fn target_source(
        &self,
        target: Option<&pb::RangeVar>,
        returning: Option<&pb::ReturningClause>,
    ) -> Vec<Source<'m>> {
        let mut sources = target
            .map(|target| self.sources_of_var(target))
            .unwrap_or_default();
        let options = returning
            .into_iter()
            .flat_map(|clause| &clause.options)
            .filter_map(inner);
        let renamed = options.filter_map(|option| match option {
            Ref::ReturningOption(option) => Some(option.value.clone()),
            _ => None,
        });
        let rows: Vec<String> = ["old".to_owned(), "new".to_owned()]
            .into_iter()
            .chain(renamed)
            .collect();
        for source in &mut sources {
            source.names.extend(rows.iter().cloned());
        }
        sources
    }

    /// Anything else: a masked column met here is refused with the present place.
    fn visit(&mut self, node: Ref<'_>) {
        match node {
            Ref::SelectStmt(it) => drop(self.select(it, Output::Inside(Place::Subselect))),
            Ref::InsertStmt(_) | Ref::UpdateStmt(_) | Ref::DeleteStmt(_) | Ref::MergeStmt(_) => {
                self.query(node, Output::Inside(Place::Subselect));
            }
            Ref::ColumnRef(it) => match self.reference(it) {
                Reference::Other => self.attribute(it),
                Reference::Column(column) => self.refuse(column, self.place),
                Reference::Star(column) | Reference::WholeRow(column) => {
                    self.refuse(column, Place::WholeRow)
                }
            },
            // An index column, conflict target or statistics column given by name.
            Ref::IndexElem(it) => self.named(&it.name, node),
            Ref::StatsElem(it) => self.named(&it.name, node),
            other => self.children(other),
        }
    }

    fn named(&mut self, name: &str, node: Ref<'_>) {
        if let Some(column) = self
            .scopes
            .iter()
            .flatten()
            .find_map(|source| source.masked(name))
        {
            self.refuse(column, self.place);
        }
        self.children(node);
    }

    /// Resolves a column reference, wider than PostgreSQL does: a masked table of any enclosing level
    /// that could be meant is.
    fn reference(&self, it: &pb::ColumnRef) -> Reference {
        let names = strings(&it.fields);
        let star = matches!(it.fields.last().and_then(inner), Some(Ref::AStar(_)));
        let mut all = self.scopes.iter().flatten();
        let found = match (names.as_slice(), star) {
            ([], true) => {
                let innermost = self.scopes.last().and_then(|scope| scope.first());
                innermost.map(|source| Reference::Star(source.any_column()))
            }
            ([.., qualifier], true) => all
                .find(|source| source.goes_by(qualifier))
                .map(|source| Reference::Star(source.any_column())),
            ([name], false) => all.find_map(|source| match source.masked(name) {
                Some(column) => Some(Reference::Column(column)),
                None if source.goes_by(name) => Some(Reference::WholeRow(source.any_column())),
                None => None,
            }),
            ([.., qualifier, name], false) => all.find_map(|source| {
                let qualified = source
                    .goes_by(qualifier)
                    .then(|| source.masked(name))
                    .flatten();
                match qualified {
                    Some(column) => Some(Reference::Column(column)),
                    None if source.goes_by(name) => Some(Reference::WholeRow(source.any_column())),
                    None => None,
                }
            }),
            ([], false) => None,
        };
        found.unwrap_or(Reference::Other)
    }

    /// Notes `c.name` where `c` may be the row of a masked table.
    fn attribute(&mut self, it: &pb::ColumnRef) {
        let names = strings(&it.fields);
        let [.., qualifier, name] = names.as_slice() else {
            return;
        };
        for source in self.scopes.iter().flatten() {
            if source.goes_by(qualifier) {
                let of_table = self.attributes.entry(source.table.clone()).or_default();
                of_table.insert((*name).to_owned());
            }
        }
    }

    fn at(&mut self, place: Place, visit: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.place, place);
        visit(self);
        self.place = before;
    }

    fn one(&mut self, node: &Option<Box<pb::Node>>) {
        if let Some(node) = node.as_deref().and_then(inner) {
            self.visit(node);
        }
    }

    fn each(&mut self, nodes: &[pb::Node]) {
        nodes
            .iter()
            .filter_map(inner)
            .for_each(|node| self.visit(node));
    }

    /// An unexpected node already made the statement unknown (see `facts`).
    fn children(&mut self, node: Ref<'_>) {
        let _ = node.children(&mut |child| self.visit(child));
    }
}

/// One item of a target list.
enum Shown {
    Clear,
    Masked { column: String, as_name: String },
    Star,
}

/// A SELECT whose rows are compared, combined or stored does not answer with them.
fn narrowed(it: &pb::SelectStmt, output: Output) -> Output {
    match output {
        Output::Inside(place) => Output::Inside(place),
        Output::Answer if it.into_clause.is_some() => Output::Inside(Place::NewTable),
        Output::Answer if it.op() != pb::SetOperation::SetopNone => {
            Output::Inside(Place::SetOperation)
        }
        Output::Answer if plain_distinct(it) => Output::Inside(Place::Distinct),
        Output::Answer => Output::Answer,
    }
}

/// `DISTINCT` compares whole rows, `DISTINCT ON (…)` only the listed expressions.
fn plain_distinct(it: &pb::SelectStmt) -> bool {
    it.distinct_clause.iter().any(|item| item.node.is_none())
}

fn renames(alias: Option<&pb::Alias>) -> bool {
    alias.is_some_and(|alias| !alias.colnames.is_empty())
}
