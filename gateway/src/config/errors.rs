//! What is wrong with a configuration file, where, and what to write instead.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// One problem, at one line of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Counted from 1; 0 if the problem is the file as a whole.
    pub line: usize,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        write!(f, " {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Every problem of a configuration, in the order of its lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl ConfigErrors {
    pub(super) fn whole_file(file: &Path, message: String, hint: &str) -> Self {
        Self(vec![ConfigError {
            file: file.to_owned(),
            line: 0,
            message,
            hint: Some(hint.to_owned()),
        }])
    }
}

/// What a value reader objects to, as the end of a sentence that starts with the key: "must be …".
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// Collects the errors of one file while its sections are read.
///
/// Shared by every section at once, hence the cell: sections nest, and each of them reports.
#[derive(Debug)]
pub(super) struct Report<'a> {
    file: &'a Path,
    /// Offsets of the line breaks.
    breaks: Vec<usize>,
    errors: RefCell<Vec<ConfigError>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path, text: &str) -> Self {
        Self {
            file,
            breaks: text.match_indices('\n').map(|(offset, _)| offset).collect(),
            errors: RefCell::default(),
        }
    }

    /// The line of a byte offset into the text.
    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self
            .breaks
            .partition_point(|line_break| *line_break < offset)
    }

    pub(super) fn add(&self, offset: usize, message: String, hint: Option<String>) {
        self.errors.borrow_mut().push(ConfigError {
            file: self.file.to_owned(),
            line: self.line(offset),
            message,
            hint,
        });
    }

    pub(super) fn syntax(&self, error: &toml::de::Error) {
        let offset = error.span().map_or(0, |span| span.start);
        let message = format!("not valid TOML: {}", error.message().replace('\n', ", "));
        self.add(offset, message, None);
    }

    /// The value, if nothing was reported.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, ConfigErrors> {
        let errors = self.into_errors();
        match errors.0.is_empty() {
            true => Ok(value),
            false => Err(errors),
        }
    }

    pub(super) fn into_errors(self) -> ConfigErrors {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        ConfigErrors(errors)
    }
}
