//! What the person at the terminal sees, and whether it was true.

use std::io::{IsTerminal as _, PipeReader, Read as _, Write as _, pipe};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Standard output; coloured when it is a terminal and nobody minds.
pub struct Screen {
    colours: bool,
}

impl Screen {
    pub fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours }
    }

    pub fn section(&self, title: &str) {
        println!("\n{}", self.paint("1;36", &format!("── {title}")));
    }

    pub fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// A command to try, and what it is for.
    pub fn command(&self, command: &str, purpose: &str) {
        println!("   {}\n      {purpose}", self.paint("1", command));
    }

    /// Runs a program and shows its command line and everything it prints, as it would look in a terminal.
    pub fn run(&self, command: Command) -> Result<String> {
        self.run_with_input(command, "")
    }

    /// The same with something typed into it.
    pub fn run_with_input(&self, mut command: Command, input: &str) -> Result<String> {
        let shown = shown(&command);
        println!("   {}", self.paint("1", &format!("$ {shown}")));
        let (reader, writer) = pipe()?;
        command.stdin(Stdio::piped());
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("running {shown}"))?;
        // The command holds the pipe's writing ends too: without this the reader never sees the end.
        drop(command);
        if let Some(mut stdin) = child.stdin.take() {
            // A program may end without having read all of it.
            let _ = stdin.write_all(input.as_bytes());
        }
        let printed = self.copy(reader)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("`{shown}` ended with {status}");
        }
        Ok(printed)
    }

    fn copy(&self, mut reader: PipeReader) -> Result<String> {
        let mut printed = String::new();
        reader.read_to_string(&mut printed)?;
        for line in printed.lines() {
            let line = match line {
                line if line.starts_with("ERROR:") => self.paint("31", line),
                line if line.starts_with("DETAIL:") || line.starts_with("HINT:") => {
                    self.paint("33", line)
                }
                line => line.to_owned(),
            };
            println!("   {line}");
        }
        Ok(printed)
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// What was shown, and whether it held.
#[derive(Default)]
pub struct Checks(Vec<(&'static str, bool)>);

impl Checks {
    pub fn that(&mut self, what: &'static str, held: bool) {
        self.0.push((what, held));
    }

    /// Prints them all.
    ///
    /// # Errors
    /// One did not hold.
    pub fn verdict(&self, screen: &Screen) -> Result<()> {
        screen.section("What was shown");
        for (what, held) in &self.0 {
            let mark = if *held {
                screen.paint("32", "✔")
            } else {
                screen.paint("31", "✘")
            };
            screen.say(&format!("{mark} {what}"));
        }
        let failed = self.0.iter().filter(|(_, held)| !held).count();
        if failed > 0 {
            bail!("{failed} of {} things shown did not hold", self.0.len());
        }
        Ok(())
    }
}

/// The command line as a person would type it on a host where Sluice is installed: our own program by its
/// name, and without the folder that the demo's installation is below.
fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let mut words: Vec<String> = command
        .get_args()
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    if words.first().is_some_and(|word| word == "--root") {
        words.drain(..2);
    }
    words.insert(0, name);
    words.join(" ")
}

fn quoted(word: &str) -> String {
    if word.contains([' ', '*', ';', '(']) {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}
