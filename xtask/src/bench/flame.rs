//! A flame graph: stacks that were sampled, drawn so that the width of a function is its share of the samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 1600.0;
const HEIGHT: usize = 17;

/// What is narrower says nothing.
const NARROWEST: f64 = 0.8;

/// About, of the font below.
const CHARACTER: f64 = 6.6;

/// A function and what it called.
#[derive(Debug, Default)]
pub struct Frame {
    samples: u64,
    called: BTreeMap<String, Frame>,
}

impl Frame {
    /// One sample of a stack, outermost function first.
    pub fn add<'a>(&mut self, stack: impl IntoIterator<Item = &'a str>) {
        self.samples += 1;
        let mut frame = self;
        for function in stack {
            frame = frame.called.entry(function.to_owned()).or_default();
            frame.samples += 1;
        }
    }

    fn depth(&self) -> usize {
        1 + self.called.values().map(Frame::depth).max().unwrap_or(0)
    }

    /// Samples in which each function was the innermost, the most frequent ones first.
    pub fn innermost(&self) -> Vec<(String, u64)> {
        let mut own = BTreeMap::new();
        self.collect(&mut own);
        let mut own: Vec<_> = own.into_iter().collect();
        own.sort_by_key(|(_, samples)| std::cmp::Reverse(*samples));
        own
    }

    fn collect(&self, own: &mut BTreeMap<String, u64>) {
        for (name, frame) in &self.called {
            let below: u64 = frame.called.values().map(|it| it.samples).sum();
            if frame.samples > below {
                *own.entry(name.clone()).or_default() += frame.samples - below;
            }
            frame.collect(own);
        }
    }

    /// Samples that had each function anywhere in their stack, the most frequent ones first.
    pub fn anywhere(&self) -> Vec<(String, u64)> {
        let mut found = BTreeMap::new();
        self.collect_anywhere(&mut Vec::new(), &mut found);
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by_key(|(_, samples)| std::cmp::Reverse(*samples));
        found
    }

    fn collect_anywhere<'a>(
        &'a self,
        callers: &mut Vec<&'a str>,
        found: &mut BTreeMap<String, u64>,
    ) {
        for (name, frame) in &self.called {
            // A function that calls itself is there once.
            if !callers.contains(&name.as_str()) {
                *found.entry(name.clone()).or_default() += frame.samples;
            }
            callers.push(name);
            frame.collect_anywhere(callers, found);
            callers.pop();
        }
    }

    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// SVG 1.1, outermost functions at the bottom; a title on each shows its share.
    pub fn svg(&self, title: &str) -> String {
        let depth = self.depth() + 2;
        let height = depth * HEIGHT;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"monospace\" font-size=\"11\">\n\
             <text x=\"4\" y=\"13\">{}: {} samples</text>\n",
            escaped(title),
            self.samples
        );
        let scale = WIDTH / self.samples.max(1) as f64;
        let mut left = 0.0;
        for (name, frame) in &self.called {
            frame.draw(&mut svg, name, left, height - HEIGHT, scale, self.samples);
            left += frame.samples as f64 * scale;
        }
        svg + "</svg>\n"
    }

    fn draw(&self, svg: &mut String, name: &str, left: f64, top: usize, scale: f64, all: u64) {
        let width = self.samples as f64 * scale;
        if width < NARROWEST {
            return;
        }
        let share = self.samples as f64 * 100.0 / all as f64;
        let letters = (width / CHARACTER) as usize;
        let label: String = match letters {
            0..3 => String::new(),
            _ => name.chars().take(letters).collect(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<g><title>{} ({share:.1} %, {} samples)</title><rect x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{}\">{}</text></g>",
            escaped(name),
            self.samples,
            HEIGHT - 1,
            colour(name),
            left + 2.0,
            top + HEIGHT - 5,
            escaped(&label),
        );
        let mut left = left;
        for (name, frame) in &self.called {
            frame.draw(svg, name, left, top.saturating_sub(HEIGHT), scale, all);
            left += frame.samples as f64 * scale;
        }
    }
}

/// Warm for the gateway's own code, cold for the rest, and always the same for one name.
fn colour(name: &str) -> String {
    let hash = name.bytes().fold(7u32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let hue = if name.contains("gateway::") { 20 } else { 200 };
    format!("hsl({},60%,{}%)", hue + hash % 25, 62 + hash / 25 % 15)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Reads what `perf script -F comm,ip,sym` says: a stack a paragraph, the innermost function first.
pub fn read(script: &str, root: &mut Frame, load: &str) {
    for paragraph in script.split("\n\n") {
        let mut lines = paragraph.lines().filter(|line| !line.trim().is_empty());
        let Some(thread) = lines.next() else {
            continue;
        };
        let mut stack: Vec<String> = lines.map(function).collect();
        stack.push(thread.trim().to_owned());
        stack.push(load.to_owned());
        root.add(stack.iter().rev().map(String::as_str));
    }
}

/// `    55d0c0ffee name::of::it::h0123456789abcdef+0x12`, without address, offset and hash.
fn function(line: &str) -> String {
    let name = line.trim();
    let name = name.split_once(' ').map_or(name, |(_, name)| name);
    let name = name.split("+0x").next().unwrap_or(name);
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 => path.to_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "worker \n\t  55d0 gateway::inner::h0123456789abcdef+0x1\n\t  55d1 outer\n\nworker \n\t  55d1 outer\n\n";

    #[test]
    fn stacks_are_read_and_counted() {
        let mut root = Frame::default();
        read(SCRIPT, &mut root, "load");
        assert_eq!(root.samples(), 2);
        let own = root.innermost();
        assert!(own.contains(&("gateway::inner".to_owned(), 1)));
        assert!(own.contains(&("outer".to_owned(), 1)));
        assert!(root.anywhere().contains(&("outer".to_owned(), 2)));
    }

    #[test]
    fn every_wide_function_is_drawn_once_with_its_share() {
        let mut root = Frame::default();
        read(SCRIPT, &mut root, "a<b");
        let svg = root.svg("it");
        assert!(svg.contains("<title>gateway::inner (50.0 %, 1 samples)"));
        assert!(svg.contains("<title>outer (100.0 %, 2 samples)"));
        assert!(svg.contains("a&lt;b"));
        assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
    }
}
