//! How much an agent may ask, and how what is over it is written down: not question by question, and not
//! forgotten either.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often a shared line may be written.
const PERIOD: Duration = Duration::from_secs(1);

/// One line that stands for several things: the first of them as the sample, and how many there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared<S> {
    pub sample: S,
    pub count: u64,
}

/// Gathers what happens too often to be written down one by one. The sum of all counts is exact.
#[derive(Debug)]
pub struct Gathered<S> {
    pending: Option<Shared<S>>,
    /// When the last line was handed out.
    written: Option<Instant>,
}

impl<S> Default for Gathered<S> {
    fn default() -> Self {
        Self {
            pending: None,
            written: None,
        }
    }
}

impl<S> Gathered<S> {
    /// Counts one more. The first in a second is handed out at once, the others with [`Gathered::due`].
    pub fn add(&mut self, now: Instant, sample: impl FnOnce() -> S) -> Option<Shared<S>> {
        match &mut self.pending {
            Some(shared) => shared.count += 1,
            None => {
                self.pending = Some(Shared {
                    sample: sample(),
                    count: 1,
                });
            }
        }
        self.due(now)
    }

    /// What has waited long enough.
    pub fn due(&mut self, now: Instant) -> Option<Shared<S>> {
        let since = |written| now.saturating_duration_since(written);
        if self.written.is_some_and(|written| since(written) < PERIOD) {
            return None;
        }
        self.take(now)
    }

    /// Everything, however long it has waited.
    pub fn take(&mut self, now: Instant) -> Option<Shared<S>> {
        let shared = self.pending.take()?;
        self.written = Some(now);
        Some(shared)
    }

    /// Puts back what could not be written down.
    pub fn put_back(&mut self, unwritten: Shared<S>) {
        let since = self.pending.take().map_or(0, |shared| shared.count);
        self.pending = Some(Shared {
            count: unwritten.count + since,
            ..unwritten
        });
    }
}

/// Whether a question is looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<S> {
    Admitted,
    /// Over the limit; with the line to write, if it is time for one.
    Over(Option<Shared<S>>),
}

/// A token bucket for each agent. `S` is what a shared line needs to know.
#[derive(Debug)]
pub struct Limiter<S> {
    /// Questions in a second; also how many may come at once.
    rate: u32,
    buckets: HashMap<Option<String>, Bucket<S>>,
}

#[derive(Debug)]
struct Bucket<S> {
    tokens: f64,
    filled: Instant,
    over: Gathered<S>,
}

impl<S> Limiter<S> {
    pub fn new(rate: u32) -> Self {
        Self {
            rate,
            buckets: HashMap::new(),
        }
    }

    /// Takes one question of `agent`. All processes without an agent share a bucket: memory is bounded by the configuration.
    pub fn admit(
        &mut self,
        now: Instant,
        agent: Option<&str>,
        sample: impl FnOnce() -> S,
    ) -> Admission<S> {
        let rate = f64::from(self.rate);
        let bucket = self.bucket(agent, now);
        let elapsed = now.saturating_duration_since(bucket.filled);
        bucket.tokens = (bucket.tokens + elapsed.as_secs_f64() * rate).min(rate);
        bucket.filled = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Admission::Admitted;
        }
        Admission::Over(bucket.over.add(now, sample))
    }

    /// The lines that have waited long enough.
    pub fn due(&mut self, now: Instant) -> Vec<(Option<String>, Shared<S>)> {
        self.each(|gathered| gathered.due(now))
    }

    /// All lines, at the end.
    pub fn take(&mut self, now: Instant) -> Vec<(Option<String>, Shared<S>)> {
        self.each(|gathered| gathered.take(now))
    }

    pub fn put_back(&mut self, now: Instant, agent: Option<&str>, unwritten: Shared<S>) {
        self.bucket(agent, now).over.put_back(unwritten);
    }

    fn each(
        &mut self,
        take: impl Fn(&mut Gathered<S>) -> Option<Shared<S>>,
    ) -> Vec<(Option<String>, Shared<S>)> {
        self.buckets
            .iter_mut()
            .filter_map(|(agent, bucket)| Some((agent.clone(), take(&mut bucket.over)?)))
            .collect()
    }

    fn bucket(&mut self, agent: Option<&str>, now: Instant) -> &mut Bucket<S> {
        let tokens = f64::from(self.rate);
        self.buckets
            .entry(agent.map(str::to_owned))
            .or_insert_with(|| Bucket {
                tokens,
                filled: now,
                over: Gathered::default(),
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_second_of_questions() {
        let start = Instant::now();
        let mut limiter = Limiter::new(2);
        let mut ask = |millis| limiter.admit(at(start, millis), Some("bot"), || millis);
        let shared = |sample, count| Admission::Over(Some(Shared { sample, count }));
        for (millis, expected) in [
            (0, Admission::Admitted),
            (0, Admission::Admitted),
            // The first over the limit has its line at once, the next share one a second later.
            (1, shared(1, 1)),
            (2, Admission::Over(None)),
            (3, Admission::Over(None)),
            // Half a second is one question's worth.
            (501, Admission::Admitted),
            (502, Admission::Over(None)),
            (1001, Admission::Admitted),
            (1002, shared(2, 4)),
            (10_000, Admission::Admitted),
            (10_000, Admission::Admitted),
            (10_000, shared(10_000, 1)),
        ] {
            assert_eq!(ask(millis), expected, "at {millis} ms");
        }
    }

    #[test]
    fn agents_do_not_share() {
        let now = Instant::now();
        let mut limiter = Limiter::new(1);
        for agent in [Some("a"), Some("b"), None] {
            assert_eq!(limiter.admit(now, agent, || ()), Admission::Admitted);
            assert_ne!(limiter.admit(now, agent, || ()), Admission::Admitted);
        }
    }

    #[test]
    fn the_rest_is_written_when_it_is_due_and_at_the_end() {
        let start = Instant::now();
        let mut limiter = Limiter::new(1);
        for millis in 0..4 {
            let _ = limiter.admit(at(start, millis), Some("bot"), || millis);
        }
        assert!(limiter.due(at(start, 1000)).is_empty());
        let line = (
            Some("bot".to_owned()),
            Shared {
                sample: 2,
                count: 2,
            },
        );
        assert_eq!(limiter.due(at(start, 1001)), std::slice::from_ref(&line));
        assert!(limiter.due(at(start, 5000)).is_empty());
        limiter.put_back(at(start, 5000), Some("bot"), line.1.clone());
        assert_eq!(limiter.take(at(start, 5000)), [line]);
    }

    proptest! {
        /// Whatever comes when: admitted + all counts = asked, and lines are a second apart.
        #[test]
        fn nothing_is_forgotten(
            rate in 1u32..20,
            steps in proptest::collection::vec((0u64..300, any::<bool>()), 1..400),
        ) {
            let start = Instant::now();
            let (mut now, mut asked, mut admitted, mut counted) = (start, 0u64, 0u64, 0u64);
            let mut lines: Vec<Instant> = vec![];
            let mut limiter = Limiter::new(rate);
            for (millis, ask) in steps {
                now += Duration::from_millis(millis);
                let line = if ask {
                    asked += 1;
                    match limiter.admit(now, Some("bot"), || ()) {
                        Admission::Admitted => { admitted += 1; None }
                        Admission::Over(line) => line,
                    }
                } else {
                    limiter.due(now).pop().map(|(_, shared)| shared)
                };
                if let Some(shared) = line {
                    counted += shared.count;
                    lines.push(now);
                }
            }
            for pair in lines.windows(2) {
                prop_assert!(pair[1] - pair[0] >= PERIOD);
            }
            counted += limiter.take(now).iter().map(|(_, shared)| shared.count).sum::<u64>();
            prop_assert_eq!(admitted + counted, asked);
            let seconds = (now - start).as_secs_f64();
            prop_assert!(admitted as f64 <= f64::from(rate) * (seconds + 1.0) + 1.0);
        }
    }
}
