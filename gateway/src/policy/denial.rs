//! The words of a denial. An agent, often a language model, reads them and acts on them: what was not
//! permitted, by which rule, what is permitted instead, and who can change that.

use crate::sql::Place;

/// Why an operation is denied, in the parts of a PostgreSQL error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The deciding policy's `@id`, or the gateway's own rule: `default-deny`, `sql:unknown`, `mask:…`.
    pub rule: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

/// Who can change a decision; ends every hint.
pub(super) const WHO_DECIDES: &str = "If the task needs more, ask an operator of this gateway to change its policies, naming the rule in DETAIL.";

impl Denial {
    /// A masked column where its mask does not reach.
    pub(super) fn masked(column: &str, place: Place) -> Self {
        Self {
            rule: place.rule().to_owned(),
            message: format!("column {column} is masked and may not be used in {place}"),
            detail: format!(
                "Denied by rule {}: the column's clear value would decide or shape the result, where its mask cannot hide it.",
                place.rule()
            ),
            hint: format!(
                "{} Masks are part of the gateway's configuration; only its operator can change them.",
                instead(column, place)
            ),
        }
    }

    /// Two policies permit a session, each with another login.
    pub(super) fn ambiguous(annotation: &str, one: &str, other: &str) -> Self {
        Self {
            rule: "policy:ambiguous".to_owned(),
            message: format!("the policies disagree about the {annotation} of this session"),
            detail: format!(
                "Denied by rule policy:ambiguous: {one} and {other} both permit it, with another @{annotation} each."
            ),
            hint: format!("Connecting in another way does not help. {WHO_DECIDES}"),
        }
    }

    /// A statement the gateway could not read, and that no policy permits as such.
    pub(super) fn unknown(why: &str) -> Self {
        Self {
            rule: "sql:unknown".to_owned(),
            message: format!("the statement could not be analysed: {why}"),
            detail: "Denied by rule sql:unknown: what cannot be understood is not run.".to_owned(),
            hint: "If it is a syntax error, correct it. Otherwise write the statement in a simpler form, and send one statement at a time."
                .to_owned(),
        }
    }
}

/// What to write instead.
fn instead(column: &str, place: Place) -> String {
    match place {
        Place::Expression
        | Place::Subselect
        | Place::SetOperation
        | Place::Distinct
        | Place::ColumnAlias => format!(
            "Select {column} itself, as a plain column of the outermost SELECT (it arrives masked), or leave it out; name the columns you need instead of * in sub-selects."
        ),
        Place::Predicate | Place::Join => {
            format!(
                "Filter and join by another column, such as the primary key; {column} may only be selected."
            )
        }
        Place::Order | Place::Group => {
            format!(
                "Order and group by other columns, written by name; {column} may only be selected."
            )
        }
        Place::WholeRow => format!(
            "List the columns you need by name instead of the whole row; {column} may be among them only as a plain column of the outermost SELECT."
        ),
        Place::Assignment | Place::ConflictTarget => format!(
            "Write {column} from a literal or a parameter; it may not be read from, nor be the target of ON CONFLICT."
        ),
        Place::Copy => format!("Use SELECT, or COPY with a column list that leaves {column} out."),
        Place::NewTable | Place::View => format!("Leave {column} out of the query."),
        Place::Code => format!(
            "Run the statements by themselves, without a code block; leave {column} out of functions."
        ),
        Place::Definition => {
            format!(
                "Leave {column} and the table's name as they are; other columns may be changed."
            )
        }
        Place::Statistics => {
            "Use pg_class.reltuples for sizes, or aggregate the columns you may read.".to_owned()
        }
        Place::SqlInText => "Send the inner statement by itself.".to_owned(),
        Place::Unknown => {
            "If it is a syntax error, correct it; otherwise write the statement in a simpler form."
                .to_owned()
        }
    }
}
