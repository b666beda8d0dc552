//! Parsing, on threads of its own.

use std::sync::{Arc, Mutex, mpsc};

use tokio::sync::oneshot;

use super::meaning::Meaning;
use super::remembered::Remembered;
use crate::config::Target;
use crate::policy::masking::MaskRule;
use crate::session::watch;
use crate::sql::strings::{self, Strings};
use crate::sql::{self, Naming, Statement, Table};

/// What the parsers made of a text, and what evidence shows of it.
#[derive(Debug)]
pub struct Analysed {
    /// One per statement.
    pub(super) statements: Vec<Arc<Meaning>>,
    pub(super) evidence: String,
}

impl Analysed {
    #[cfg(test)]
    pub(in crate::session) fn for_tests(text: &str) -> Self {
        analyse(text, Strings::Standard, &[])
    }

    pub fn statements(&self) -> &[Arc<Meaning>] {
        &self.statements
    }

    /// Whether it copies all columns of a masked table, whatever they are now.
    pub fn copies_whole_table(&self) -> bool {
        let copies = self.statements.iter().filter_map(|it| it.copy());
        let mut sent = copies.filter_map(|copy| copy.sent.as_ref());
        sent.any(|sent| matches!(sent, sql::copy::Sent::Table { .. }))
    }

    /// Every relation the text names.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.statements.iter().flat_map(|it| it.tables())
    }
}

struct Job {
    text: String,
    strings: Strings,
    target: Arc<Target>,
    reply: oneshot::Sender<Analysed>,
}

/// Threads that parse. Deeply nested statements overflow an ordinary stack, which would end the whole
/// process, so parsing happens on stacks of their own size.
#[derive(Debug)]
pub struct Analyst {
    queue: mpsc::Sender<Job>,
    remembered: Remembered,
}

/// Virtual memory, touched only as deep as a statement nests. sqlparser's drop overflows 2 MiB at
/// 250 kB of chained operators.
const STACK: usize = 512 << 20;

impl Analyst {
    pub fn start(threads: usize) -> std::io::Result<Arc<Self>> {
        let (queue, jobs) = mpsc::channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..threads.max(1) {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new()
                .name(format!("analyst-{number}"))
                .stack_size(STACK)
                .spawn(move || work(&jobs))?;
        }
        Ok(Arc::new(Self {
            queue,
            remembered: Remembered::default(),
        }))
    }

    pub(super) async fn analyse(
        &self,
        text: &str,
        strings: Strings,
        target: &Arc<Target>,
    ) -> Option<Analysed> {
        let remembers = strings == Strings::Standard;
        if remembers && let Some(known) = self.remembered.find(&target.name, text) {
            return Some(known);
        }
        let (reply, answer) = oneshot::channel();
        let job = Job {
            text: text.to_owned(),
            strings,
            target: Arc::clone(target),
            reply,
        };
        self.queue.send(job).ok()?;
        let analysed = tokio::time::timeout(watch::ANALYSIS, answer)
            .await
            .ok()?
            .ok()?;
        if remembers {
            self.remembered.remember(&target.name, text, &analysed);
        }
        Some(analysed)
    }
}

fn work(jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(poisoned) => poisoned.into_inner().recv(),
        };
        let Ok(Job {
            text,
            strings,
            target,
            reply,
        }) = job
        else {
            return;
        };
        // Who asked has given up or gone: the queue holds no work for nobody.
        if reply.is_closed() {
            continue;
        }
        // A parser that panics denies this statement (no reply) and the thread goes on.
        let analysed = std::panic::catch_unwind(|| analyse(&text, strings, &target.masks));
        if let Ok(analysed) = analysed {
            // The asker may have left: nothing was permitted then.
            let _ = reply.send(analysed);
        }
    }
}

fn analyse(text: &str, strings: Strings, masks: &[MaskRule]) -> Analysed {
    if !strings.are_clear_in(text) {
        let evidence = strings::evidence_of_unclear(text, masks);
        let facts = strings::facts_of_unclear(text, masks);
        let meaning = |statement| Arc::new(Meaning::new(statement, evidence.clone(), None));
        return Analysed {
            statements: facts.statements.into_iter().map(meaning).collect(),
            evidence,
        };
    }
    let facts = sql::analyse(text, masks);
    let evidence = sql::evidence_text(text, &facts, masks);
    let statements = facts.statements.into_iter();
    Analysed {
        statements: statements.map(|it| meaning(it, masks)).collect(),
        evidence,
    }
}

/// One statement by itself, and the one that it prepares or declares.
fn meaning(statement: Statement, masks: &[MaskRule]) -> Arc<Meaning> {
    let makes = match &statement.naming {
        Naming::Prepare { prepared, .. } => Some(prepared),
        Naming::Declare { query, .. } => Some(query),
        _ => None,
    };
    let makes = makes.map(|made| meaning(Statement::clone(made), masks));
    let shown = sql::evidence_of(&statement, masks);
    Arc::new(Meaning::new(statement, shown, makes))
}
