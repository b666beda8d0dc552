//! Names and what they stand for, in step with the server although it answers later.
//!
//! A message that gives a name away takes effect when the server gets to it, or never: it may fail, or be
//! skipped because an earlier one failed. So two states are kept. What has been answered is *settled*, and
//! there every name stands for what it stands for in the server. What is still on its way is a list of
//! *changes*, in the order they were sent. Asked what a name will stand for when the next message gets
//! there, [`Names::lookup`] goes back through the changes: one that cannot have failed if that message runs
//! at all ends the search, any other leaves both possibilities open.

use std::collections::{HashMap, VecDeque};

use super::pending::Name;

/// Where in the order of what was sent a change stands: the message, and the statement in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) message: u64,
    pub(super) part: usize,
}

impl At {
    pub(super) fn end_of(message: u64) -> Self {
        Self {
            message,
            part: usize::MAX,
        }
    }
}

/// A place in the order, and what must have gone well before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) at: At,
    /// Counts the Syncs before it.
    pub(super) segment: u64,
    /// A message of the extended protocol. When it fails, everything up to the next Sync is skipped.
    pub(super) extended: bool,
}

impl Sent {
    /// Whether the earlier change has succeeded if this one is reached.
    fn follows_from(&self, earlier: &Sent) -> bool {
        earlier.at.message == self.at.message
            || (earlier.extended && earlier.segment == self.segment)
    }
}

#[derive(Debug)]
pub(super) enum Change<T> {
    Set(Name, T),
    /// Only one of several possible statements does this.
    PerhapsSet(Name, T),
    Remove(Name),
    /// Every name but the unnamed one.
    RemoveAll,
    /// Code runs that may give any name another meaning.
    Anything,
}

#[derive(Debug)]
struct Moving<T> {
    sent: Sent,
    change: Change<T>,
}

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Failed,
    Skipped,
}

/// What a name may stand for.
#[derive(Debug, Clone)]
pub(super) struct Possible<T> {
    pub(super) known: Vec<T>,
    /// Also something that nobody told the gateway.
    pub(super) unknown: bool,
}

impl<T> Default for Possible<T> {
    fn default() -> Self {
        Self {
            known: Vec::new(),
            unknown: false,
        }
    }
}

impl<T> Possible<T> {
    /// If there is no other.
    pub(super) fn only(&self) -> Option<&T> {
        match &self.known[..] {
            [only] if !self.unknown => Some(only),
            _ => None,
        }
    }
}

/// More possibilities than this are no knowledge any more.
pub(super) const MOST_POSSIBILITIES: usize = 16;

#[derive(Debug)]
pub(super) struct Names<T> {
    settled: HashMap<Name, Possible<T>>,
    moving: VecDeque<Moving<T>>,
    /// Code of the database has run, so that names may exist that no message has made.
    strangers: Option<At>,
    /// The same before the last message that was noted for it, which may be taken back.
    strangers_before: Option<At>,
    /// Names are not kept as they are sent: two of them that differ here may be one there, and one may be two.
    converted: bool,
}

impl<T: Clone> Names<T> {
    pub(super) fn new() -> Self {
        Self {
            settled: HashMap::new(),
            moving: VecDeque::new(),
            strangers: None,
            strangers_before: None,
            converted: false,
        }
    }

    /// From here on, for good, the server has names in another encoding than the agent.
    pub(super) fn are_converted(&mut self) {
        self.converted = true;
    }

    /// What a name stands for when the next message is reached.
    pub(super) fn lookup(&self, name: &[u8], now: &Sent) -> Possible<T> {
        let mut found = Possible::default();
        for Moving { sent, change } in self.moving.iter().rev() {
            let certain = now.follows_from(sent);
            match change {
                Change::Set(known, it) if known == name => {
                    found.known.push(it.clone());
                    if certain {
                        return found;
                    }
                }
                Change::PerhapsSet(known, it) if known == name => found.known.push(it.clone()),
                Change::Remove(known) if known == name && certain => {
                    found.unknown |= self.strange_since(name, sent.at);
                    return found;
                }
                Change::RemoveAll if certain && !name.is_empty() => {
                    found.unknown |= self.strange_since(name, sent.at);
                    return found;
                }
                // Code cannot reach the unnamed ones.
                Change::Anything => found.unknown |= !name.is_empty(),
                _ => {}
            }
        }
        match self.settled.get(name) {
            Some(settled) => {
                found.unknown |= settled.unknown;
                found.known.extend(settled.known.iter().cloned());
            }
            None => found.unknown |= found.known.is_empty() && self.may_be_strange(name),
        }
        found.unknown |= self.converted && !name.is_ascii();
        if found.known.len() > MOST_POSSIBILITIES {
            found.unknown = true;
            found.known.truncate(MOST_POSSIBILITIES);
        }
        found
    }

    /// What has another encoding in the server may be another name there.
    fn may_be_strange(&self, name: &[u8]) -> bool {
        !name.is_empty() && (self.strangers.is_some() || !name.is_ascii())
    }

    /// Whether code may have made a name again that was taken away.
    fn strange_since(&self, name: &[u8], then: At) -> bool {
        !name.is_empty() && self.strangers.is_some_and(|last| last > then)
    }

    /// What a name may stand for in the server now, as far as it has answered.
    pub(super) fn settled(&self, name: &[u8]) -> &[T] {
        self.settled.get(name).map_or(&[], |it| &it.known)
    }

    /// Whether anything is or may be known by this name.
    pub(super) fn mentions(&self, name: &[u8]) -> bool {
        !self.moving.is_empty() || self.settled.contains_key(name)
    }

    pub(super) fn change(&mut self, sent: Sent, change: Change<T>) {
        self.moving.push_back(Moving { sent, change });
    }

    /// A statement was sent that may run code of the database.
    pub(super) fn code_runs(&mut self, sent: &Sent) {
        if self.strangers.map(|last| last.message) != Some(sent.at.message) {
            self.strangers_before = self.strangers;
        }
        self.strangers = Some(sent.at);
    }

    /// Takes back what was noted of a message that was not sent after all.
    pub(super) fn retract(&mut self, message: u64) {
        while self
            .moving
            .back()
            .is_some_and(|moving| moving.sent.at.message >= message)
        {
            self.moving.pop_back();
        }
        if self.strangers.is_some_and(|last| last.message >= message) {
            self.strangers = self.strangers_before;
        }
    }

    /// Everything up to here has ended in this way.
    pub(super) fn settle(&mut self, upto: At, end: End) {
        while self
            .moving
            .front()
            .is_some_and(|moving| moving.sent.at <= upto)
        {
            let Some(Moving { sent, change }) = self.moving.pop_front() else {
                return;
            };
            match end {
                End::Done => self.apply(sent, change),
                // What fails may have done a part of what it does outside of transactions.
                End::Failed if matches!(change, Change::Anything) => self.apply(sent, change),
                End::Failed | End::Skipped => {}
            }
        }
    }

    fn apply(&mut self, sent: Sent, change: Change<T>) {
        match change {
            Change::Set(name, it) => {
                let certain = Possible {
                    known: vec![it],
                    unknown: false,
                };
                self.settled.insert(name, certain);
            }
            Change::PerhapsSet(name, it) => {
                let known = self.settled.entry(name).or_default();
                match known.known.len() < MOST_POSSIBILITIES {
                    true => known.known.push(it),
                    false => known.unknown = true,
                }
            }
            Change::Remove(name) => drop(self.settled.remove(&name)),
            Change::RemoveAll => {
                self.settled.retain(|name, _| name.is_empty());
                // Only what has run since can have made others.
                for last in [&mut self.strangers, &mut self.strangers_before] {
                    *last = last.filter(|last| *last > sent.at);
                }
            }
            Change::Anything => {
                for (name, known) in &mut self.settled {
                    known.unknown |= !name.is_empty();
                }
                for last in [&mut self.strangers, &mut self.strangers_before] {
                    *last = (*last).max(Some(sent.at));
                }
            }
        }
    }

    /// Forgets the settled names of which this is not true.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.settled
            .retain(|_, known| known.unknown || known.known.iter().any(&keep));
    }

    pub(super) fn forget(&mut self, name: &[u8]) {
        self.settled.remove(name);
    }

    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.settled.len()
    }
}
