//! Sets messages as text: one line each with the time since the beginning, rows as a table.

use serde_json::Value;

use super::{Body, Message};
use crate::recording::frame::Direction;
use crate::recording::terminal::{Paint, Tone, cut, one_line, printable};

/// Rows are set as a table of at most this many, or this much text, at a time, so that a large result
/// needs little memory.
const ROWS: usize = 200;
const TEXT: usize = 1 << 20;
/// Wider cells are cut unless everything is wanted.
const CELL: usize = 48;
const STAMP: usize = 12;
const LABEL: usize = 12;

/// How much of the conversation is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Statements, rows, errors.
    Readable,
    /// Also the protocol's housekeeping, and long values whole.
    Everything,
}

/// Text of a conversation in the making.
#[derive(Debug)]
pub struct Page {
    paint: Paint,
    detail: Detail,
    began: Option<u64>,
    stamped: Option<u64>,
    table: Option<Table>,
}

/// The result that is being read.
#[derive(Debug)]
struct Table {
    unix_ns: u64,
    /// None when the agent had asked for the columns earlier: rows of a prepared statement come bare.
    columns: Option<Vec<String>>,
    rows: Vec<Vec<Option<String>>>,
    /// Length of the values in `rows`.
    text: usize,
    /// Whether a part of it has been set already.
    begun: bool,
}

impl Page {
    pub fn new(paint: Paint, detail: Detail) -> Page {
        Page {
            paint,
            detail,
            began: None,
            stamped: None,
            table: None,
        }
    }

    /// The text this message completes.
    pub fn message(&mut self, unix_ns: u64, direction: Direction, message: Message) -> String {
        match message.body {
            Body::Columns(columns) => {
                let before = self.end();
                self.table = Some(Table::new(unix_ns, Some(columns)));
                before
            }
            Body::Row(values) => {
                let table = self.table.get_or_insert_with(|| Table::new(unix_ns, None));
                table.text += values.iter().flatten().map(String::len).sum::<usize>();
                table.rows.push(values);
                if table.rows.len() < ROWS && table.text < TEXT {
                    return String::new();
                }
                self.set_table()
            }
            body => {
                let is_result = matches!(message.name, "done" | "suspended");
                let before = if is_result {
                    self.set_table()
                } else {
                    String::new()
                };
                let before = before + &self.end();
                if self.detail == Detail::Readable && matches!(body, Body::Housekeeping(_)) {
                    return before;
                }
                before + &self.line(unix_ns, arrow(direction), message.name, &body)
            }
        }
    }

    /// A remark of the gateway.
    pub fn note(&mut self, unix_ns: u64, note: &Value) -> String {
        let members = note.as_object().into_iter().flatten();
        let members: Vec<String> = members
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            })
            .collect();
        let text = match members.is_empty() {
            true => note.to_string(),
            false => members.join(" "),
        };
        let before = self.end();
        before + &self.line(unix_ns, "!", "note", &Body::Text(text))
    }

    /// What is left at the end of the recording.
    pub fn end(&mut self) -> String {
        let text = match &self.table {
            Some(table) if table.rows.is_empty() && !table.begun => self.set_columns(),
            Some(table) if !table.rows.is_empty() => self.set_table(),
            _ => String::new(),
        };
        self.table = None;
        text
    }

    /// Columns that no result followed: the answer to a Describe.
    fn set_columns(&mut self) -> String {
        let Some(table) = self.table.take() else {
            return String::new();
        };
        let columns = Body::Text(table.columns.unwrap_or_default().join(", "));
        self.line(table.unix_ns, "←", "columns", &columns)
    }

    fn line(&mut self, unix_ns: u64, mark: &str, name: &str, body: &Body) -> String {
        let tone = match (name, mark) {
            ("error", _) | ("unreadable", _) => Tone::Bad,
            (_, "!") | ("notice", _) => Tone::Warning,
            (_, "→") => Tone::Bold,
            _ => Tone::Plain,
        };
        let (first, more) = body_lines(body);
        let label = format!("{mark} {name:<10}");
        let head = format!("{}{}", self.stamp(unix_ns), self.paint.tone(tone, label));
        let mut text = format!("{head}  {}", self.paint.tone(tone, first));
        text.truncate(text.trim_end().len());
        text.push('\n');
        for line in more {
            let line = self.paint.tone(tone, line);
            text += &format!("{:1$}  {line}\n", "", STAMP + LABEL);
        }
        text
    }

    /// The time since the beginning, once per moment.
    fn stamp(&mut self, unix_ns: u64) -> String {
        let began = *self.began.get_or_insert(unix_ns);
        if self.stamped.replace(unix_ns) == Some(unix_ns) {
            return format!("{:STAMP$}", "");
        }
        let us = unix_ns.saturating_sub(began) / 1_000;
        let since = format!("+{}.{:06}s", us / 1_000_000, us % 1_000_000);
        self.paint.tone(Tone::Dim, format!("{since:<STAMP$}"))
    }

    /// Sets the rows so far, under the heading if they are the first.
    fn set_table(&mut self) -> String {
        let Some(mut table) = self.table.take() else {
            return String::new();
        };
        let rows = std::mem::take(&mut table.rows);
        table.text = 0;
        let rows: Vec<Vec<String>> = rows.iter().map(|row| self.cells(row)).collect();
        let lines = self.table_lines(&table, &rows);
        let indent = format!("{:1$}  ", "", STAMP + LABEL);
        let label = match table.begun {
            true => indent.clone(),
            false => format!("{}← {:<10}  ", self.stamp(table.unix_ns), "rows"),
        };
        table.begun = true;
        self.table = Some(table);
        match lines.is_empty() {
            true => String::new(),
            false => label + &lines.join(&format!("\n{indent}")) + "\n",
        }
    }

    fn table_lines(&self, table: &Table, rows: &[Vec<String>]) -> Vec<String> {
        let names = table.columns.iter().flatten();
        let heading: Vec<String> = names.map(|name| printable(name).into_owned()).collect();
        let mut widths: Vec<usize> = Vec::new();
        for row in rows.iter().chain([&heading]) {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut lines = Vec::new();
        if table.columns.is_some() && !table.begun {
            let rules: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            lines.push(self.paint.tone(Tone::Bold, set(&heading, &widths)));
            lines.push(self.paint.tone(Tone::Dim, rules.join("─┼─")));
        }
        lines.extend(rows.iter().map(|row| set(row, &widths)));
        lines
    }

    fn cells(&self, row: &[Option<String>]) -> Vec<String> {
        row.iter()
            .map(|value| match (value, self.detail) {
                (None, _) => "NULL".into(),
                (Some(value), Detail::Everything) => printable(value).into_owned(),
                (Some(value), Detail::Readable) => cut(&printable(value), CELL).into_owned(),
            })
            .collect()
    }
}

impl Table {
    fn new(unix_ns: u64, columns: Option<Vec<String>>) -> Table {
        Table {
            unix_ns,
            columns,
            rows: Vec::new(),
            text: 0,
            begun: false,
        }
    }
}

fn arrow(direction: Direction) -> &'static str {
    match direction {
        Direction::AgentToTarget => "→",
        Direction::TargetToAgent => "←",
    }
}

/// One row of a table, without blanks at its end.
fn set(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:<width$}"))
        .collect();
    cells.join(" │ ").trim_end().to_owned()
}

/// The first line of a message, and those below it.
fn body_lines(body: &Body) -> (String, Vec<String>) {
    match body {
        Body::Text(text) | Body::Housekeeping(text) => {
            let mut lines = text.trim_end().split('\n').map(|line| {
                let line = line.trim_end_matches('\r').replace('\t', "    ");
                printable(&line).into_owned()
            });
            (lines.next().unwrap_or_default(), lines.collect())
        }
        Body::Fields(fields) => {
            let field = |wanted| {
                let found = fields.iter().find(|(letter, _)| *letter == wanted);
                found.map(|(_, text)| one_line(text))
            };
            let first = [field('C'), field('M')].into_iter().flatten();
            let first: Vec<String> = first.collect();
            let more = [("detail", field('D')), ("hint", field('H'))];
            let more = more
                .into_iter()
                .filter_map(|(name, text)| Some(format!("{name}: {}", text?)));
            (first.join(" "), more.collect())
        }
        Body::Columns(_) | Body::Row(_) => (String::new(), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(messages: &[(&'static str, Body)]) -> String {
        let mut page = Page::new(Paint::PLAIN, Detail::Readable);
        let mut text = String::new();
        for (name, body) in messages {
            let message = Message {
                name,
                body: body.clone(),
            };
            text += &page.message(1, Direction::TargetToAgent, message);
        }
        text + &page.end()
    }

    fn columns(names: &[&str]) -> (&'static str, Body) {
        let names = names.iter().map(|name| (*name).to_owned());
        ("rows", Body::Columns(names.collect()))
    }

    fn row(values: &[&str]) -> (&'static str, Body) {
        let values = values.iter().map(|value| Some((*value).to_owned()));
        ("row", Body::Row(values.collect()))
    }

    fn done(tag: &str) -> (&'static str, Body) {
        ("done", Body::Text(tag.into()))
    }

    #[test]
    fn tables_are_set_under_their_label() {
        type Row<'a> = (&'a str, Vec<(&'static str, Body)>, &'a str);
        let table: &[Row<'_>] = &[
            (
                "no rows",
                vec![columns(&["a", "b"]), done("SELECT 0")],
                "+0.000000s  ← rows        a │ b\n\
                 \x20                         ──┼──\n\
                 \x20           ← done        SELECT 0\n",
            ),
            (
                "rows of a prepared statement",
                vec![row(&["1", "x"]), row(&["22", "y"]), done("SELECT 2")],
                "+0.000000s  ← rows        1  │ x\n\
                 \x20                         22 │ y\n\
                 \x20           ← done        SELECT 2\n",
            ),
            (
                "only described",
                vec![columns(&["a", "b"]), ("error", Body::Fields(vec![]))],
                "+0.000000s  ← columns     a, b\n\
                 \x20           ← error\n",
            ),
            (
                "cut off",
                vec![columns(&["a"]), row(&["1"])],
                "+0.000000s  ← rows        a\n\
                 \x20                         ─\n\
                 \x20                         1\n",
            ),
        ];
        for (name, messages, expected) in table {
            let text = page(messages);
            assert_eq!(text, *expected, "{name}\n{text}");
        }
    }

    #[test]
    fn a_large_result_is_set_in_parts() {
        let mut messages = vec![columns(&["n"])];
        messages.extend((0..2 * ROWS + 1).map(|n| row(&[&n.to_string()])));
        messages.push(done("SELECT 401"));
        let text = page(&messages);
        assert_eq!(text.lines().count(), 2 + 2 * ROWS + 1 + 1);
        assert_eq!(text.matches("rows").count(), 1);
        assert!(
            text.lines()
                .skip(2)
                .take(401)
                .zip(0..)
                .all(|(line, n)| line.trim() == n.to_string())
        );
    }

    #[test]
    fn long_cells_are_cut_for_reading_only() {
        let long = "x".repeat(CELL + 1);
        let text = page(&[row(&[&long])]);
        assert!(
            text.contains(&format!("{}…", "x".repeat(CELL - 1))),
            "{text}"
        );
        let mut whole = Page::new(Paint::PLAIN, Detail::Everything);
        let (name, body) = row(&[&long]);
        let text = whole.message(1, Direction::TargetToAgent, Message { name, body });
        assert!((text + &whole.end()).contains(&long));
    }
}
