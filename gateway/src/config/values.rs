//! Readers of single values: TOML value in, checked value or the reason against it out.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeArray, DeTable, DeValue};

use super::errors::Problem;

/// Where the installation's absolute paths start, when it is not `/`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root<'a>(pub(super) Option<&'a Path>);

impl Root<'_> {
    /// An absolute path, below the root if there is one.
    pub(super) fn place(self, path: &str) -> PathBuf {
        match self.0 {
            Some(root) => root.join(path.trim_start_matches('/')),
            None => PathBuf::from(path),
        }
    }

    /// Reads an absolute path and places it.
    pub(super) fn path(self, value: &DeValue<'_>) -> Result<PathBuf, Problem> {
        absolute(value).map(|path| self.place(path))
    }
}

pub(super) fn absolute<'a>(value: &'a DeValue<'_>) -> Result<&'a str, Problem> {
    let path = text(value)?;
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(
            Problem::new(format!("must be an absolute path, not {path:?}"))
                .hint("the gateway has no working directory to start from; begin with /"),
        ),
    }
}

/// A non-empty string without control characters: those only ever come from a broken template.
pub(super) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, Problem> {
    let DeValue::String(text) = value else {
        return Err(wrong_type("a string", value));
    };
    if text.trim().is_empty() {
        return Err(Problem::new("must not be empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::new("must not contain control characters"));
    }
    Ok(text)
}

pub(super) fn owned_text(value: &DeValue<'_>) -> Result<String, Problem> {
    text(value).map(str::to_owned)
}

/// A string that one of the configuration's own types can parse.
pub(super) fn parsed<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<T, Problem> {
    let text = text(value)?;
    text.parse()
        .map_err(|error| Problem::new(format!("has the value {text:?}: {error}")))
}

pub(super) fn number<T: TryFrom<i64>>(
    value: &DeValue<'_>,
    min: i64,
    max: i64,
) -> Result<T, Problem> {
    let expected = format!("a whole number from {min} to {max}");
    let DeValue::Integer(digits) = value else {
        return Err(wrong_type(&expected, value));
    };
    i64::from_str_radix(digits.as_str(), digits.radix())
        .ok()
        .filter(|number| (min..=max).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| Problem::new(format!("must be {expected}, not {digits}")))
}

pub(super) fn array<'a>(value: &'a DeValue<'a>) -> Result<&'a DeArray<'a>, Problem> {
    match value {
        DeValue::Array(array) => Ok(array),
        _ => Err(wrong_type("a list", value)),
    }
}

pub(super) fn table<'a>(value: &'a DeValue<'a>) -> Result<&'a DeTable<'a>, Problem> {
    match value {
        DeValue::Table(table) => Ok(table),
        _ => Err(wrong_type("a table", value)),
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Result<T, Problem> {
    let text = text(value)?;
    if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*choice);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    Err(
        Problem::new(format!("must be {}, not {text:?}", quoted(&words)))
            .hint(suggest(text, &words)),
    )
}

/// The name of an agent, target or identity: it goes into policies, file names, URLs and log lines unquoted.
pub(super) fn name(name: &str) -> Result<(), Problem> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(
        Problem::new("is not a name: 1 to 63 of the characters a-z, 0-9 and -")
            .hint(format!("for example {:?}", slug(name))),
    )
}

fn slug(name: &str) -> String {
    let fits = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let slug: String = name.chars().take(63).map(fits).collect();
    match slug.trim_matches('-') {
        "" => "my-name".to_owned(),
        slug => slug.to_owned(),
    }
}

/// A cgroup relative to the one above it: `agents.slice`, `team/report-bot`.
pub(super) fn cgroup(value: &DeValue<'_>) -> Result<String, Problem> {
    let path = text(value)?;
    let refuse = |why: &str| Err(Problem::new(format!("has the value {path:?}: {why}")));
    if path.starts_with('/') {
        return refuse("a cgroup is written relative to the one above it, without a leading /");
    }
    for part in path.split('/') {
        if part.is_empty() || part == "." || part == ".." || part.len() > 255 {
            return refuse("every part between slashes must be a cgroup's name");
        }
        if part.contains(char::is_whitespace) {
            return refuse("a cgroup's name has no spaces");
        }
        if part.starts_with("cgroup.") {
            return refuse("names that start with cgroup. are the kernel's own files");
        }
    }
    Ok(path.to_owned())
}

/// What useradd(8) accepts, or a number, so that it is safe on a command line; whether the user exists is
/// the host's to say.
pub(super) fn user(value: &DeValue<'_>) -> Result<String, Problem> {
    let name = text(value)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match name.len() <= 32 && name.chars().all(fits) && !name.starts_with('-') {
        true => Ok(name.to_owned()),
        false => Err(Problem::new(format!("must be a user's name, not {name:?}"))),
    }
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Problem> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err(wrong_type("true or false", value)),
    }
}

/// A host name or an IP address, as a certificate can carry it.
pub(super) fn server_name(value: &DeValue<'_>) -> Result<String, Problem> {
    let name = text(value)?;
    match rustls::pki_types::ServerName::try_from(name) {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err(Problem::new(format!(
            "must be a host name or an IP address, not {name:?}"
        ))),
    }
}

fn wrong_type(expected: &str, value: &DeValue<'_>) -> Problem {
    let found = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Problem::new(format!("must be {expected}, not {found}"))
}

/// A hint for a word that is none of `known`: the one that was meant, or all of them.
pub(super) fn suggest<S: AsRef<str>>(word: &str, known: &[S]) -> String {
    let plain = |word: &str| word.to_lowercase().replace('_', "-");
    let word = plain(word);
    let distance = |candidate: &S| {
        let candidate = plain(candidate.as_ref());
        // Half of the name, such as port for listen_port, is nearer than any other spelling.
        match word.len() >= 3 && candidate.contains(&word) {
            true => 0,
            false => edit_distance(&word, &candidate),
        }
    };
    let nearest = known
        .iter()
        .map(|candidate| (distance(candidate), candidate));
    match nearest.min_by_key(|(distance, _)| *distance) {
        None => "nothing is known here".to_owned(),
        // A third of the letters wrong is still a slip, more is another word.
        Some((distance, candidate)) if distance <= 1 + word.chars().count() / 3 => {
            format!("did you mean {}?", candidate.as_ref())
        }
        Some(_) => {
            let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
            format!("known are {}", known.join(", "))
        }
    }
}

fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    quoted.join(" or ")
}

/// Levenshtein distance, over at most 64 characters each: hints need no more.
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_name_what_was_meant() {
        for (word, hint) in [
            ("listenport", "did you mean listen_port?"),
            ("LISTEN_PORT", "did you mean listen_port?"),
            ("max-sessions", "did you mean max_sessions?"),
            ("port", "did you mean listen_port?"),
            ("colour", "known are listen_port, max_sessions"),
        ] {
            assert_eq!(
                suggest(word, &["listen_port", "max_sessions"]),
                hint,
                "{word}"
            );
        }
        assert_eq!(suggest::<&str>("x", &[]), "nothing is known here");
    }

    #[test]
    fn edit_distances() {
        for (left, right, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("same", "same", 0),
            ("ä", "a", 1),
        ] {
            assert_eq!(edit_distance(left, right), distance, "{left} {right}");
            assert_eq!(edit_distance(right, left), distance, "{right} {left}");
        }
    }
}
