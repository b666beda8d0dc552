//! One table of the file while it is read: hands out the keys it is asked for, reports the ones nobody asked for.

use std::fmt::Display;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors::{Problem, Report};
use super::values;

/// A value and the byte offset it stands at, for errors that are only found later.
#[derive(Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) offset: usize,
}

/// A table being read. Call [`finish`](Self::finish) when every known key has been taken.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// As in the file, `targets.shop`; empty for the document itself.
    name: String,
    /// `None` when the file does not have this table: then every key is absent.
    table: Option<&'a DeTable<'a>>,
    offset: usize,
    report: &'a Report<'a>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn top(table: &'a DeTable<'a>, report: &'a Report<'a>) -> Self {
        Self {
            name: String::new(),
            table: Some(table),
            offset: 0,
            report,
            known: Vec::new(),
        }
    }

    /// Takes an optional key. A value that `read` refuses is reported and counts as absent.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'a DeValue<'a>) -> Result<T, Problem>,
    ) -> Option<T> {
        let (_, value) = self.find(key)?;
        match read(value.get_ref()) {
            Ok(read) => Some(read),
            Err(problem) => {
                self.refuse(value.span().start, key, problem);
                None
            }
        }
    }

    /// Takes a key that must be there.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'a DeValue<'a>) -> Result<T, Problem>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            self.report(
                self.offset,
                format!("[{}] lacks the key {key}", self.name),
                None,
            );
            return None;
        }
        self.take(key, read)
    }

    /// Takes a list, each entry read on its own so that every bad entry is reported. `None` if the key is
    /// absent or something was wrong.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&'a DeValue<'a>) -> Result<T, Problem>,
    ) -> Option<Vec<At<T>>> {
        let array = self.take(key, values::array)?;
        let mut entries = Vec::with_capacity(array.len());
        for entry in array.iter() {
            let offset = entry.span().start;
            match read(entry.get_ref()) {
                Ok(value) => entries.push(At { value, offset }),
                Err(problem) => self.refuse(offset, key, problem),
            }
        }
        (entries.len() == array.len()).then_some(entries)
    }

    /// The table under `key`; an empty one if the file has none, so that defaults apply.
    pub(super) fn table(&mut self, key: &'static str) -> Section<'a> {
        match self.find(key) {
            Some((offset, _)) => {
                let table = self.take(key, values::table);
                self.below(key, table, offset)
            }
            None => self.below(key, None, self.offset),
        }
    }

    /// The tables of `[key.NAME]`, for keys under which the operator chooses the names.
    pub(super) fn named_tables(&mut self, key: &'static str) -> Vec<(String, Section<'a>)> {
        let section = self.table(key);
        let mut tables = Vec::new();
        for (name, value) in section.table.into_iter().flat_map(|table| table.iter()) {
            let offset = name.span().start;
            let name: &str = name.get_ref();
            match values::name(name).and_then(|()| values::table(value.get_ref())) {
                Ok(table) => {
                    tables.push((name.to_owned(), section.below(name, Some(table), offset)));
                }
                Err(problem) => section.refuse(offset, name, problem),
            }
        }
        tables
    }

    /// The tables of `[[key]]`.
    pub(super) fn table_array(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(array) = self.take(key, values::array) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for entry in array.iter() {
            let offset = entry.span().start;
            match values::table(entry.get_ref()) {
                Ok(table) => tables.push(self.below(key, Some(table), offset)),
                Err(problem) => self.refuse(offset, key, problem),
            }
        }
        tables
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let hint = values::suggest(name, &self.known);
                self.report(
                    key.span().start,
                    format!("unknown key {}", self.dotted(name)),
                    Some(hint),
                );
            }
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Where a key's value stands, or the section if it is absent.
    pub(super) fn offset_of(&self, key: &str) -> usize {
        let value = self.table.and_then(|table| table.get(key));
        value.map_or(self.offset, |value| value.span().start)
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        self.report.line(offset)
    }

    /// Reports that the value of `key` at `offset` is not acceptable.
    pub(super) fn refuse(&self, offset: usize, key: impl Display, problem: Problem) {
        let message = format!("{} {}", self.dotted(key), problem.message);
        self.report(offset, message, problem.hint);
    }

    fn report(&self, offset: usize, message: String, hint: Option<String>) {
        self.report.add(offset, message, hint);
    }

    fn find(&mut self, key: &'static str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let (key, value) = self.table?.get_key_value(key)?;
        Some((key.span().start, value))
    }

    fn below(&self, key: &str, table: Option<&'a DeTable<'a>>, offset: usize) -> Section<'a> {
        Section {
            name: self.dotted(key),
            table,
            offset,
            report: self.report,
            known: Vec::new(),
        }
    }

    fn dotted(&self, key: impl Display) -> String {
        match self.name.is_empty() {
            true => key.to_string(),
            false => format!("{}.{key}", self.name),
        }
    }
}
