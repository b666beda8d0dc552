//! The kernel programs' sources: "yes" is spelled in one place.

use std::fs;
use std::path::Path;

/// Every program returns what is in `kernel::answer`; nowhere else stands a literal that allows.
#[test]
fn only_the_named_answers_allow() {
    let folder = crate::harness::repository().join("gateway-ebpf/src/kernel");
    let mut looked_at = 0;
    for entry in fs::read_dir(&folder)
        .expect("the sources are here")
        .flatten()
    {
        let path = entry.path();
        let source = fs::read_to_string(&path).expect("a source file");
        let source = without_answers(&path, &source);
        for (number, line) in (1..).zip(source.lines()) {
            let code = line.split("//").next().unwrap_or_default().trim();
            assert!(!allows(code), "{}:{number}: {code}", path.display());
        }
        looked_at += 1;
    }
    assert!(
        looked_at > 10,
        "only {looked_at} files in {}",
        folder.display()
    );
}

/// A line that is a bare 1, returns one, or names one.
fn allows(code: &str) -> bool {
    let bare = code.trim_end_matches([';', ',', '}', ' ']);
    let value = bare.rsplit(['=', '>', '{', ' ']).next().unwrap_or_default();
    let is_one = matches!(value, "1" | "1_i32" | "1i32" | "1_u32" | "1u32" | "SK_PASS");
    let gives =
        bare == value || code.contains("return") || code.contains("=>") || code.contains("const");
    is_one && gives
}

/// The module of answers is exempt; it is the only one.
fn without_answers(path: &Path, source: &str) -> String {
    if path.file_name().is_none_or(|name| name != "mod.rs") {
        return source.to_owned();
    }
    let start = source.find("mod answer {").expect("the answers are here");
    let end = start + source[start..].find("\n}\n").expect("the module ends");
    let constants = source[start..end]
        .lines()
        .filter(|line| line.contains("= 1;"));
    for line in constants {
        let name = line.trim().trim_start_matches("pub const ");
        assert!(
            ["ALLOW_", "NAMED", "OBSERVED"]
                .iter()
                .any(|prefix| name.starts_with(prefix)),
            "{line}"
        );
    }
    format!("{}{}", &source[..start], &source[end..])
}

#[test]
fn the_search_finds_what_it_is_for() {
    for code in [
        "return 1;",
        "1",
        "1;",
        "None => 1,",
        "let x = if y { return 1 };",
        "const YES: i32 = 1;",
        "Some(_) => return 1,",
    ] {
        assert!(allows(code), "{code}");
    }
    for code in [
        "add(counter, 1);",
        "0",
        "level + 1)",
        "None => 0,",
        "return ALLOW_LOCAL;",
        "Some(1..)",
    ] {
        assert!(!allows(code), "{code}");
    }
}
