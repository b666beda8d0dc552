//! The policies directory: every `*.cedar` file in it, taken together or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::policy::{PolicyError, PolicySet};

/// A policy file is written by hand; more than this is a mistake.
const LARGEST_FILE: u64 = 1 << 20;

/// The policies of a configuration, which must have the credentials that they name.
pub fn load_for(config: &Config) -> Result<PolicySet, Vec<PolicyError>> {
    let policies = load(&config.policies)?;
    let targets = config.targets.values();
    let credentials = targets
        .map(|target| {
            let names = target.credentials.keys().cloned().collect();
            (target.name.clone(), names)
        })
        .collect();
    let errors = policies.without_credential(&credentials);
    match errors.is_empty() {
        true => Ok(policies),
        false => Err(errors),
    }
}

/// Reads and validates the directory; all errors at once.
pub fn load(dir: &Path) -> Result<PolicySet, Vec<PolicyError>> {
    let error = |file: &Path, message: String, hint: &str| PolicyError {
        file: file.to_owned(),
        line: 0,
        message,
        hint: Some(hint.to_owned()),
    };
    let files = policy_files(dir).map_err(|e| {
        let hint = "set policies.path in sluice.toml to a directory the gateway may read";
        vec![error(
            dir,
            format!("the policies directory cannot be read: {e}"),
            hint,
        )]
    })?;
    if files.is_empty() {
        let hint = "without a policy everything is denied: copy read-only.cedar there";
        return Err(vec![error(
            dir,
            "there is no *.cedar file in the policies directory".to_owned(),
            hint,
        )]);
    }
    let (texts, errors): (Vec<_>, Vec<_>) = files
        .into_iter()
        .map(|file| match read(&file) {
            Ok(text) => Ok((file, text)),
            Err(why) => Err(error(
                &file,
                why,
                "every policy file must be readable UTF-8 text of at most 1 MiB",
            )),
        })
        .partition(Result::is_ok);
    let errors: Vec<PolicyError> = errors.into_iter().filter_map(Result::err).collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    let texts: Vec<(PathBuf, String)> = texts.into_iter().filter_map(Result::ok).collect();
    PolicySet::parse(&texts)
}

fn policy_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "cedar")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String, String> {
    let size = fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > LARGEST_FILE {
        return Err(format!("the file has {size} bytes"));
    }
    fs::read_to_string(file).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_loaded_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let messages = |result: Result<PolicySet, Vec<PolicyError>>| match result {
            Ok(_) => vec![],
            Err(errors) => errors.into_iter().map(|error| error.message).collect(),
        };
        assert_eq!(
            messages(load(dir.path())),
            ["there is no *.cedar file in the policies directory"]
        );
        assert!(
            messages(load(&dir.path().join("none")))[0]
                .starts_with("the policies directory cannot be read")
        );

        fs::write(
            dir.path().join("a.cedar"),
            "@id(\"a\") permit (principal, action, resource);",
        )
        .expect("written");
        fs::write(dir.path().join("README"), "not a policy").expect("written");
        assert_eq!(messages(load(dir.path())), Vec::<String>::new());

        fs::write(dir.path().join("b.cedar"), "permit (").expect("written");
        fs::write(dir.path().join("c.cedar"), [0xff]).expect("written");
        assert!(!messages(load(dir.path())).is_empty());
    }
}
