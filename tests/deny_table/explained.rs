//! Where a denial of the gateway's cannot be what the server's own would be, and why.

/// One order of messages in which the two differ.
pub struct Explained {
    pub order: &'static str,
    pub why: &'static str,
    /// What is seen natively, and what through the gateway instead; nothing, if that is empty. Each replaces
    /// the first that is left of its kind, in order, and nothing else may differ.
    instead: &'static [(&'static str, &'static str)],
}

impl Explained {
    /// What must be seen through the gateway.
    pub fn applied_to(&self, native: &[String]) -> Result<Vec<String>, String> {
        let mut expected = Vec::new();
        let mut instead = self.instead.iter().peekable();
        for word in native {
            match instead.next_if(|(seen, _)| seen == word) {
                Some((_, "")) => {}
                Some((_, through)) => expected.push((*through).to_owned()),
                None => expected.push(word.clone()),
            }
        }
        match instead.next() {
            None => Ok(expected),
            Some((seen, _)) => Err(format!(
                "explained as a difference, but natively there is no {seen:?} in {native:?}"
            )),
        }
    }
}

const WHOLE: &str = "a string is decided before any of it runs";
const WHOLE_COPY: &str = "a string is decided before any of it runs, so no data is asked for";
const STATE: &str =
    "a string is decided before any of it runs, so the transaction is as it was before the string";
const AT_PARSE: &str = "the gateway decides at Parse; the server asks for this privilege at Bind";
const AT_PARSE_OF_EXECUTE: &str =
    "the gateway decides at Parse; the server asks for this privilege at Execute";

/// Messages by hand.
pub const WIRE: &[Explained] = &[
    Explained {
        order: "multi_middle",
        why: WHOLE,
        instead: &[("C:INSERT 0 1 E:ERROR/42501 Z:I", "E:ERROR/42501 Z:I")],
    },
    Explained {
        order: "multi_last",
        why: WHOLE,
        instead: &[(
            "T D C:SELECT 1 C:INSERT 0 1 E:ERROR/42501 Z:I",
            "E:ERROR/42501 Z:I",
        )],
    },
    Explained {
        order: "multi_with_a_transaction",
        why: STATE,
        instead: &[
            (
                "C:BEGIN C:INSERT 0 1 E:ERROR/42501 Z:E",
                "E:ERROR/42501 Z:I",
            ),
            ("C:ROLLBACK Z:I", "N C:ROLLBACK Z:I"),
        ],
    },
    Explained {
        order: "multi_behind_a_commit",
        why: STATE,
        instead: &[
            ("C:COMMIT E:ERROR/42501 Z:I", "E:ERROR/42501 Z:E"),
            ("N C:ROLLBACK Z:I", "C:ROLLBACK Z:I"),
        ],
    },
    Explained {
        order: "in_a_failed_transaction",
        why: "the gateway decides first; the server would say that the transaction has failed",
        instead: &[("E:ERROR/25P02 Z:E", "E:ERROR/42501 Z:E")],
    },
    Explained {
        order: "pipelined_by_table",
        why: AT_PARSE_OF_EXECUTE,
        instead: &[(
            "1 2 n C:INSERT 0 1 1 2 n E:ERROR/42501 Z:I",
            "1 2 n C:INSERT 0 1 E:ERROR/42501 Z:I",
        )],
    },
    Explained {
        order: "at_bind",
        why: AT_PARSE,
        instead: &[("1 E:ERROR/42501 Z:I", "E:ERROR/42501 Z:I")],
    },
    Explained {
        order: "at_execute",
        why: AT_PARSE_OF_EXECUTE,
        instead: &[("1 2 E:ERROR/42501 Z:I", "E:ERROR/42501 Z:I")],
    },
    Explained {
        order: "copy_in_extended",
        why: AT_PARSE_OF_EXECUTE,
        instead: &[("1 2 E:ERROR/42501 Z:I", "E:ERROR/42501 Z:I")],
    },
    Explained {
        order: "prepared_in_sql_in_a_pipeline",
        why: AT_PARSE_OF_EXECUTE,
        instead: &[(
            "1 2 n C:INSERT 0 1 1 2 n E:ERROR/42501 Z:I",
            "1 2 n C:INSERT 0 1 E:ERROR/42501 Z:I",
        )],
    },
    Explained {
        order: "copy_and_delete",
        why: WHOLE_COPY,
        instead: &[("G C:COPY 2 E:ERROR/42501 Z:I", "E:ERROR/42501 Z:I")],
    },
];

/// psql prints the tags of what ran, and of a failed string all that ran before.
pub const PSQL: &[Explained] = &[
    Explained {
        order: "multi_middle",
        why: WHOLE,
        instead: &[("INSERT 0 1", "")],
    },
    Explained {
        order: "multi_last",
        why: WHOLE,
        instead: &[("1", ""), ("INSERT 0 1", "")],
    },
    Explained {
        order: "multi_in_a_transaction",
        why: WHOLE,
        instead: &[("INSERT 0 1", "")],
    },
    Explained {
        order: "copy_and_delete",
        why: WHOLE_COPY,
        instead: &[("COPY 2", "")],
    },
];
