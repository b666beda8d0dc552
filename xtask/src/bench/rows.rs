//! The table that large results come from: a million rows of about 113 bytes on the wire.
//!
//! Every sensitive column has a twin of the same width that no mask is on, so that a result has the same size
//! whichever of them it takes. Masks keep the width too.

use super::client::MARK;

/// Sensitive columns and their open twins.
const TWINS: [(&str, &str); 3] = [
    ("card", "card_open"),
    ("mail", "mail_open"),
    ("phone", "phone_open"),
];

/// The statements that make and fill the table.
pub fn table(owner: &str) -> String {
    let mark = String::from_utf8_lossy(MARK);
    format!(
        "CREATE UNLOGGED TABLE wide AS SELECT
            n::bigint AS id,
            'customer ' || lpad(n::text, 11, '0') AS name,
            '{mark}' || lpad(n::text, 13, '4') AS card,
            '{mark}' || lpad(n::text, 8, 'a') || '.example' AS mail,
            '{mark}' || lpad(n::text, 9, '0') AS phone,
            'opn' || lpad(n::text, 13, '4') AS card_open,
            'opn' || lpad(n::text, 8, 'a') || '.example' AS mail_open,
            'opn' || lpad(n::text, 9, '0') AS phone_open,
            lpad((n::bigint * 7919 % 99991)::text, 14, '.') AS note
        FROM generate_series(1, 1000000) AS n;
        CREATE UNLOGGED TABLE ten AS SELECT n FROM generate_series(1, 10) AS n;
        ALTER TABLE wide OWNER TO {owner};
        ALTER TABLE ten OWNER TO {owner}"
    )
}

/// For the gateway's configuration, behind the other masks of its target.
pub fn masks() -> String {
    TWINS
        .iter()
        .map(|(column, _)| {
            format!("\n[[targets.shop.mask]]\ncolumn = \"public.wide.{column}\"\nwith = \"keep_last(4)\"\n")
        })
        .collect()
}

/// All rows, `masked` of the sensitive columns among them; ten times over for ten million.
pub fn select(masked: usize, tenfold: bool) -> String {
    let columns: Vec<&str> = TWINS
        .iter()
        .enumerate()
        .map(|(index, (closed, open))| if index < masked { *closed } else { *open })
        .collect();
    let times = if tenfold { ", ten" } else { "" };
    format!(
        "SELECT id, name, {}, note FROM wide{times}",
        columns.join(", ")
    )
}
