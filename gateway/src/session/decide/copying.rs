//! COPY: what must be known of one while its data passes.

use std::sync::Arc;

use super::judge::{Derived, is_meant};
use crate::policy::Denial;
use crate::policy::masking::Transform;
use crate::protocol::postgres::copy::Format;
use crate::session::mask::{CopyPlan, MaskedColumn};
use crate::sql::copy::{self, Peer, Sent};
use crate::sql::{Place, Statement, Table};

/// A COPY with the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copying {
    /// FROM STDIN; no format where the options are not understood.
    In(Option<Format>),
    /// TO STDOUT, and its masks.
    Out(Option<Arc<CopyPlan>>),
}

/// Columns of a table, in the order in which COPY sends them when none are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    pub columns: Vec<(String, Option<MaskedColumn>)>,
    /// No other relation of the database has its name.
    pub alone: bool,
}

/// A list of columns that a statement is to be given, and where in the text.
///
/// Without one, a table that another session changes while the COPY waits for its lock would be sent in
/// another order than the one its masks were planned for.
pub(super) type Listed = (usize, String);

/// What a statement copies with the client, if it does.
pub(super) fn copying(
    statement: &Statement,
    derived: &Derived,
) -> Result<(Option<Copying>, Option<Listed>), Denial> {
    let Some(copy) = &statement.copy else {
        return Ok((None, None));
    };
    if copy.peer != Peer::Client {
        return Ok((None, None));
    }
    let format = copy.options.as_ref().map(format);
    if copy.from {
        return Ok((Some(Copying::In(format)), None));
    }
    let Some(sent) = &copy.sent else {
        return Ok((Some(Copying::Out(None)), None));
    };
    let format = format
        .filter(hides_equality)
        .ok_or_else(|| denial("its options", "Leave ENCODING and NULL out."))?;
    let (width, columns, listed) = match sent {
        Sent::Columns { width, masked } => {
            let columns = masked
                .iter()
                .map(|masked| (masked.place, column(masked, derived)))
                .collect();
            (*width, columns, None)
        }
        Sent::Table { table, list_at } => whole(table, *list_at, derived)?,
    };
    let plan = CopyPlan::new(format, width, columns);
    Ok((Some(Copying::Out(Some(Arc::new(plan)))), listed))
}

/// Whether it is a COPY … TO STDOUT.
pub(super) fn sends_to_client(statement: &Statement) -> bool {
    let copy = statement.copy.as_ref();
    copy.is_some_and(|copy| copy.peer == Peer::Client && !copy.from)
}

/// EXECUTE runs a COPY that a Parse prepared: what its data is masked by was known of that alone.
pub(super) fn by_name() -> Denial {
    let rule = Place::Copy.rule();
    Denial {
        rule: rule.to_owned(),
        message: "a prepared COPY cannot be run by EXECUTE where columns are masked".to_owned(),
        detail: format!("Rule {rule}: its data could not be masked with certainty."),
        hint: "Run the COPY itself, or bind and execute what was prepared.".to_owned(),
    }
}

type Whole = (usize, Vec<(usize, MaskedColumn)>, Option<Listed>);

fn whole(table: &Table, list_at: usize, derived: &Derived) -> Result<Whole, Denial> {
    let layout = derived
        .layouts
        .iter()
        .filter(|(known, layout)| match &table.schema {
            Some(_) => *known == table,
            None => known.name == table.name && layout.alone,
        })
        .map(|(_, layout)| layout)
        .next();
    let layout = layout
        .filter(|layout| !layout.columns.is_empty())
        .ok_or_else(|| {
            denial(
                "a table whose columns are not known for certain",
                "List the columns, and write the table's schema.",
            )
        })?;
    let columns = layout
        .columns
        .iter()
        .enumerate()
        .filter_map(|(place, (_, masked))| Some((place, masked.clone()?)))
        .collect();
    let names: Vec<String> = layout
        .columns
        .iter()
        .map(|(name, _)| format!("\"{}\"", name.replace('"', "\"\"")))
        .collect();
    let list = format!(" ({})", names.join(", "));
    Ok((layout.columns.len(), columns, Some((list_at, list))))
}

/// The mask of a column that is listed by name. One that could mean columns with different masks, or none
/// that is known, becomes NULL.
fn column(masked: &copy::MaskedColumn, derived: &Derived) -> MaskedColumn {
    let mut meant = derived
        .layouts
        .iter()
        .filter(|(known, _)| {
            masked
                .table
                .as_ref()
                .is_none_or(|table| is_meant(table, known))
        })
        .flat_map(|(_, layout)| &layout.columns)
        .filter(|(name, _)| name.to_lowercase() == masked.column.to_lowercase())
        .filter_map(|(_, mask)| mask.as_ref());
    let first = meant.next();
    let same = |mask: &MaskedColumn| {
        first.is_some_and(|first| {
            (first.transform, first.text_like) == (mask.transform, mask.text_like)
        })
    };
    match first {
        Some(first) if meant.all(same) => first.clone(),
        _ => MaskedColumn {
            name: masked.column.clone(),
            transform: Transform::Redact,
            text_like: false,
        },
    }
}

fn format(options: &copy::Options) -> Format {
    let copy::Options {
        format,
        delimiter,
        quote,
        escape,
        header,
        ..
    } = *options;
    let null = options.null.clone();
    match format {
        copy::Format::Text => Format::Text {
            delimiter,
            null,
            header,
        },
        copy::Format::Csv => Format::Csv {
            delimiter,
            null,
            quote,
            escape,
            header,
        },
        copy::Format::Binary => Format::Binary,
    }
}

/// In text format a value that is spelled like NULL is sent as NULL: `NULL '4111…'` would tell who has it.
fn hides_equality(format: &Format) -> bool {
    match format {
        Format::Text { null, .. } => null == b"\\N" || null.is_empty(),
        Format::Csv { .. } | Format::Binary => true,
    }
}

fn denial(what: &str, hint: &str) -> Denial {
    let rule = Place::Copy.rule();
    Denial {
        rule: rule.to_owned(),
        message: format!("COPY of masked columns is not possible with {what}"),
        detail: format!("Denied by rule {rule}: the data could not be masked with certainty."),
        hint: format!("{hint} SELECT works in any case."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::masking::MaskRule;
    use crate::sql;

    fn derived() -> Derived {
        let card = MaskedColumn {
            name: "public.customers.card".to_owned(),
            transform: Transform::KeepLast(4),
            text_like: true,
        };
        let layout = |alone| Layout {
            columns: vec![
                ("id".to_owned(), None),
                ("card".to_owned(), Some(card.clone())),
                ("Odd \"name".to_owned(), None),
            ],
            alone,
        };
        let table = |name: &str| Table {
            schema: Some("public".to_owned()),
            name: name.to_owned(),
        };
        Derived {
            layouts: [
                (table("customers"), layout(true)),
                (table("twice"), layout(false)),
            ]
            .into(),
            ..Derived::default()
        }
    }

    /// The masked places, and the text as it is sent.
    fn planned(text: &str) -> Option<(Vec<usize>, String)> {
        let masks: Vec<MaskRule> = ["customers", "twice"]
            .map(|table| MaskRule {
                schema: "public".to_owned(),
                table: table.to_owned(),
                column: "card".to_owned(),
                transform: Transform::KeepLast(4),
            })
            .into();
        let statement = sql::analyse(text, &masks).statements.remove(0);
        if let sql::MaskUse::Refused { .. } = statement.mask {
            return None;
        }
        let (copying, listed) = copying(&statement, &derived()).ok()?;
        let sent = match listed {
            Some((at, list)) => format!("{}{list}{}", &text[..at], &text[at..]),
            None => text.to_owned(),
        };
        let masked = match copying {
            Some(Copying::Out(Some(plan))) => plan.places(),
            _ => Vec::new(),
        };
        Some((masked, sent))
    }

    #[test]
    fn which_places_are_masked() {
        const LIST: &str = "(\"id\", \"card\", \"Odd \"\"name\")";
        let listed = |before: &str, after: &str| format!("{before} {LIST}{after}");
        for (text, expected) in [
            (
                "COPY customers TO STDOUT",
                Some((vec![1], listed("COPY customers", " TO STDOUT"))),
            ),
            (
                "COPY BINARY public . /* c */ \"customers\" TO STDOUT",
                Some((
                    vec![1],
                    listed("COPY BINARY public . /* c */ \"customers\"", " TO STDOUT"),
                )),
            ),
            (
                "COPY customers (card, id, card) TO STDOUT",
                Some((
                    vec![0, 2],
                    "COPY customers (card, id, card) TO STDOUT".to_owned(),
                )),
            ),
            (
                "COPY customers (id) TO STDOUT",
                Some((vec![], "COPY customers (id) TO STDOUT".to_owned())),
            ),
            (
                "COPY (SELECT id, c.card AS x FROM customers c) TO STDOUT WITH CSV",
                Some((
                    vec![1],
                    "COPY (SELECT id, c.card AS x FROM customers c) TO STDOUT WITH CSV".to_owned(),
                )),
            ),
            ("COPY twice TO STDOUT", None),
            (
                "COPY public.twice TO STDOUT",
                Some((vec![1], listed("COPY public.twice", " TO STDOUT"))),
            ),
            (
                "COPY other.customers TO STDOUT",
                Some((vec![], "COPY other.customers TO STDOUT".to_owned())),
            ),
            ("COPY (SELECT * FROM customers) TO STDOUT", None),
            ("COPY (SELECT card || '' FROM customers) TO STDOUT", None),
            (
                "COPY (SELECT card FROM customers UNION SELECT 'x') TO STDOUT",
                None,
            ),
            ("COPY (TABLE customers) TO STDOUT", None),
            (
                "COPY (DELETE FROM customers RETURNING card) TO STDOUT",
                None,
            ),
            ("COPY customers TO '/tmp/x'", None),
            ("COPY customers (card) TO PROGRAM 'cat'", None),
            ("COPY customers TO STDOUT (NULL '4111111111111111')", None),
            ("COPY customers TO STDOUT (ENCODING 'SJIS')", None),
            ("COPY customers TO STDOUT (FORMAT csv, FORMAT text)", None),
        ] {
            assert_eq!(planned(text), expected, "{text}");
        }
    }
}
