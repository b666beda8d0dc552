//! The evidence log as the tests read it: one JSON object per line.

use std::fmt;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// One line of the log.
#[derive(Clone)]
pub struct Event(pub Value);

/// The whole log, in order.
pub struct Events(Vec<Event>);

impl Events {
    /// The complete lines so far; the gateway may be writing the next one.
    pub fn read(log: &Path) -> Events {
        let text = fs::read_to_string(log).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        Events(
            complete
                .lines()
                .map(|line| serde_json::from_str(line).map(Event))
                .collect::<Result<_, _>>()
                .unwrap_or_else(|error| panic!("the log is not JSON lines: {error}\n{text}")),
        )
    }

    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.0.iter()
    }

    /// The events of one name, in order.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Event> {
        self.0.iter().filter(move |event| event.name() == name)
    }

    /// How many events of one name there are.
    pub fn count(&self, name: &str) -> usize {
        self.named(name).count()
    }
}

impl Event {
    /// What happened, such as `session.open`.
    pub fn name(&self) -> &str {
        self.0["event"].as_str().unwrap_or_default()
    }

    /// A member as text; a path such as `process.exe` leads into objects. Absent or null is empty.
    pub fn text(&self, path: &str) -> String {
        match self.at(path) {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// A member as a number.
    #[track_caller]
    pub fn number(&self, path: &str) -> u64 {
        self.at(path)
            .as_u64()
            .unwrap_or_else(|| panic!("{path} is no number in {self}"))
    }

    fn at(&self, path: &str) -> &Value {
        path.split('.').fold(&self.0, |value, name| &value[name])
    }
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

impl fmt::Display for Events {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|event| writeln!(out, "{event}"))
    }
}
