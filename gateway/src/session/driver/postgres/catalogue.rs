//! The target's catalogue, as far as masks need it: which (table OID, column number) is masked, which
//! relations show masked columns under other names, what is a column of a masked table and what a call
//! that looks like one, and which operators and casts are functions of the database's own.
//!
//! Asked over a connection of the gateway's own, and asked again when the answer is older than
//! [`FRESH`] or a statement changed the schema. When it cannot be had, statements are refused.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::upstream::{self, Connection, Dial};
use crate::policy::masking::{MaskRule, Transform};
use crate::protocol::postgres::backend::Field;
use crate::session::decide::{Derived, Layout};
use crate::session::mask::MaskedColumn;
use crate::sql::{Table, unambiguous};

/// How old an answer may be. A table that is replaced by another session under a masked name is
/// noticed within this time.
const FRESH: Duration = Duration::from_secs(5);

/// From this age on, one statement asks again while the others go by the answer that there is.
const AGEING: Duration = Duration::from_secs(4);

/// Masked columns that are kept in mind, those of dropped tables among them.
const MOST_REMEMBERED: usize = 1 << 20;

/// What a target's catalogue says about its masked columns.
#[derive(Debug, Default)]
pub struct Catalogue {
    columns: HashMap<(u32, i16), MaskedColumn>,
    derived: Arc<Derived>,
    tables: BTreeSet<String>,
    derived_oids: HashSet<u32>,
    /// Names of all relations there were when this was asked, in whatever schema.
    relations: HashSet<String>,
    /// The newest relation when this was asked. OIDs are handed out in order, so a greater one belongs
    /// to a relation this catalogue knows nothing about.
    newest: u32,
    /// The rules by column name, for tables no catalogue can tell about yet.
    by_name: HashMap<String, Transform>,
    masks: bool,
}

impl Catalogue {
    /// How a result column is masked, if it is.
    pub fn masked(&self, field: &Field) -> Option<MaskedColumn> {
        // An expression has no origin; statement analysis refuses those over masked columns.
        if field.table_oid == 0 {
            return None;
        }
        if self.is_unknown(field.table_oid) {
            return self.masked_by_name(field);
        }
        // A view that came into being behind the statement's decision: nothing of it is delivered.
        if self.derived_oids.contains(&field.table_oid)
            && !self
                .columns
                .contains_key(&(field.table_oid, field.attribute))
        {
            return Some(MaskedColumn {
                name: String::from_utf8_lossy(&field.name).into_owned(),
                transform: Transform::Redact,
                text_like: false,
            });
        }
        self.columns
            .get(&(field.table_oid, field.attribute))
            .cloned()
    }

    /// Whether this catalogue was asked when the relation existed already. What it does not know may be
    /// a view over a masked table.
    pub fn knows(&self, table: &Table) -> bool {
        let of_the_system = match table.schema.as_deref() {
            Some(schema) => matches!(schema, "pg_catalog" | "information_schema"),
            None => table.name.starts_with("pg_"),
        };
        !self.masks || of_the_system || self.relations.contains(&table.name)
    }

    /// A table of a transaction that is still open, seen by its own session alone.
    fn masked_by_name(&self, field: &Field) -> Option<MaskedColumn> {
        let name = String::from_utf8_lossy(&field.name).to_lowercase();
        let transform = *self.by_name.get(&name)?;
        Some(MaskedColumn {
            name,
            transform,
            text_like: false,
        })
    }

    /// Whether the table came into being after this catalogue was read.
    pub fn is_unknown(&self, table: u32) -> bool {
        self.masks && table > self.newest
    }

    pub fn derived(&self) -> &Arc<Derived> {
        &self.derived
    }

    /// What was masked stays masked: a cursor WITH HOLD has the rows of a table that is gone, and still
    /// names it as their origin.
    fn remember(&mut self, before: &Catalogue) -> Result<(), CatalogueError> {
        for (origin, column) in &before.columns {
            self.columns
                .entry(*origin)
                .or_insert_with(|| column.clone());
        }
        self.derived_oids.extend(&before.derived_oids);
        match self.columns.len().max(self.derived_oids.len()) > MOST_REMEMBERED {
            true => Err(CatalogueError(format!(
                "more than {MOST_REMEMBERED} columns and relations with masks have come and gone; restart the gateway to forget those that are gone"
            ))),
            false => Ok(()),
        }
    }

    fn mask_of(&self, masks: &[MaskRule], table: &Table, column: &str) -> Option<MaskedColumn> {
        let rule = masks.iter().find(|mask| {
            Some(&mask.schema) == table.schema.as_ref()
                && mask.table == table.name
                && mask.column == column
        })?;
        let name = format!("{}.{}.{}", rule.schema, rule.table, rule.column);
        let known = self.columns.values().find(|known| known.name == name);
        Some(MaskedColumn {
            text_like: known.is_some_and(|known| known.text_like),
            transform: rule.transform,
            name,
        })
    }

    /// Whether a table of this name, in whatever schema, has masked columns.
    pub fn is_masked_table(&self, name: &[u8]) -> bool {
        self.tables.iter().any(|table| table.as_bytes() == name)
            || self
                .derived
                .relations
                .iter()
                .any(|table| table.name.as_bytes() == name)
    }

    /// Whether the target has masks at all.
    pub fn masks_anything(&self) -> bool {
        self.masks
    }
}

/// One target database's catalogue, shared by its sessions.
#[derive(Debug)]
pub struct Catalogues {
    dial: Dial,
    /// Every statement reads it, so nobody waits with this lock in hand.
    known: RwLock<Option<Known>>,
    asking: Mutex<Asking>,
}

/// An answer, and when it was asked for.
#[derive(Debug, Clone)]
struct Known {
    asked: Instant,
    catalogue: Arc<Catalogue>,
}

/// A function of the target.
#[derive(Debug)]
pub struct Function {
    /// Quoted, and with its schema.
    pub name: String,
    /// The types of its arguments.
    pub arguments: Vec<u32>,
}

/// Whoever has the connection asks.
#[derive(Debug, Default)]
struct Asking {
    connection: Option<Connection>,
}

#[derive(Debug, thiserror::Error)]
#[error("the target's catalogue cannot be read: {0}")]
pub struct CatalogueError(String);

impl Catalogues {
    pub fn new(dial: Dial) -> Self {
        Self {
            dial,
            known: RwLock::default(),
            asking: Mutex::default(),
        }
    }

    /// The catalogue, at most [`FRESH`] old.
    pub async fn current(&self) -> Result<Arc<Catalogue>, CatalogueError> {
        if self.dial.target.masks.is_empty() {
            return Ok(Arc::default());
        }
        let asked = match self.known() {
            Some(Known { asked, catalogue }) if asked.elapsed() < AGEING => return Ok(catalogue),
            Some(Known { asked, catalogue }) if asked.elapsed() < FRESH => {
                let Ok(mut asking) = self.asking.try_lock() else {
                    return Ok(catalogue);
                };
                let anew = Box::pin(self.ask_anew(&mut asking)).await;
                return Ok(anew.unwrap_or(catalogue));
            }
            Some(Known { asked, .. }) => Some(asked),
            None => None,
        };
        // Boxed: every statement comes by here, and few have to ask.
        Box::pin(self.newer_than(asked)).await
    }

    /// The catalogue as it is now.
    pub async fn renewed(&self) -> Result<Arc<Catalogue>, CatalogueError> {
        if self.dial.target.masks.is_empty() {
            return Ok(Arc::default());
        }
        self.newer_than(Some(Instant::now())).await
    }

    /// Asks, unless somebody else has meanwhile.
    async fn newer_than(&self, time: Option<Instant>) -> Result<Arc<Catalogue>, CatalogueError> {
        let mut asking = self.asking.lock().await;
        match self.known() {
            Some(Known { asked, catalogue }) if Some(asked) > time => Ok(catalogue),
            _ => self.ask_anew(&mut asking).await,
        }
    }

    async fn ask_anew(&self, asking: &mut Asking) -> Result<Arc<Catalogue>, CatalogueError> {
        let masks = &self.dial.target.masks;
        let asked = Instant::now();
        let rows = self.ask(asking, &question(masks)).await?;
        let mut catalogue = read(&rows, masks)?;
        if let Some(before) = self.known() {
            catalogue.remember(&before.catalogue)?;
        }
        let catalogue = Arc::new(catalogue);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Known {
            asked,
            catalogue: Arc::clone(&catalogue),
        });
        Ok(catalogue)
    }

    fn known(&self) -> Option<Known> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A function by its number; `None` if there is none, or only in a transaction that is still open.
    pub async fn function(&self, oid: u32) -> Result<Option<Function>, CatalogueError> {
        let question = format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, p.proname), p.proargtypes::pg_catalog.text
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
             WHERE p.oid = {oid}::pg_catalog.oid"
        );
        let mut asking = self.asking.lock().await;
        let rows = self.ask(&mut asking, &question).await?;
        let mut fields = rows.into_iter().flatten().flatten();
        Ok(fields.next().map(|name| Function {
            name,
            arguments: fields
                .next()
                .unwrap_or_default()
                .split(' ')
                .map_while(|oid| oid.parse().ok())
                .collect(),
        }))
    }

    async fn ask(
        &self,
        asking: &mut Asking,
        question: &str,
    ) -> Result<Vec<Vec<Option<String>>>, CatalogueError> {
        // An idle connection may have been closed since: one fresh attempt.
        if let Some(mut connection) = asking.connection.take()
            && let Ok(rows) = upstream::ask(&mut connection, question).await
        {
            asking.connection = Some(connection);
            return Ok(rows);
        }
        let mut connection = upstream::connect(&self.dial, &[])
            .await
            .map_err(|error| CatalogueError(error.to_string()))?;
        let rows = upstream::ask(&mut connection, question)
            .await
            .map_err(|error| CatalogueError(error.to_string()))?;
        asking.connection = Some(connection);
        Ok(rows)
    }
}

/// One result set of several kinds of rows:
///
/// * `c, oid, attnum, text-like, rule` for every masked column (of the tables named and of what inherits
///   from them). Text-like is a type that takes any text and sends the text itself in binary, too;
/// * `d, schema, name, oid` for every relation below them, and above them: a parent's rows include its
///   children's and carry the parent's origin;
/// * `x, oid` of the newest relation, and `r, name, how many` for the relations outside of the system's schemas;
/// * `l, schema, table, column, attnum` for every column that COPY sends of the tables named;
/// * `n, schema, table, column` for every column of the tables named;
/// * `m, schema, table, column` for every mask whose table exists without the column;
/// * `o`, `t` and `a`, `name, schema, function`: functions of the database's own that are called by an
///   operator, by a cast to a type (the cast's function, a domain's checks), or by an attribute of a row.
///   Those of extensions are left out: an extension's operators are its installer's decision, and citext
///   alone would make every `=` a call.
///
/// Every view over a masked table counts, whichever columns it shows: a whole-row reference in its
/// definition leaves no trace of the columns in `pg_depend`.
fn question(masks: &[MaskRule]) -> String {
    let rules: Vec<String> = masks
        .iter()
        .enumerate()
        .map(|(number, mask)| {
            format!(
                "({number}, {}, {}, {})",
                literal(&mask.schema),
                literal(&mask.table),
                literal(&mask.column)
            )
        })
        .collect();
    format!(
        "WITH RECURSIVE rule(number, nspname, relname, attname) AS (VALUES {rules}),
         base AS (
           SELECT rule.number, c.oid, a.attname, a.attnum
           FROM rule
           JOIN pg_catalog.pg_namespace n ON n.nspname = rule.nspname
           JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = rule.relname
           JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = rule.attname),
         child AS (
           SELECT number, oid, attname FROM base
           UNION
           SELECT child.number, i.inhrelid, child.attname
           FROM child JOIN pg_catalog.pg_inherits i ON i.inhparent = child.oid),
         masked AS (
           SELECT child.number, a.attrelid AS oid, a.attnum, a.atttypid
           FROM child
           JOIN pg_catalog.pg_attribute a ON a.attrelid = child.oid AND a.attname = child.attname
           WHERE a.attnum > 0 AND NOT a.attisdropped),
         above AS (
           SELECT i.inhparent AS oid
           FROM base JOIN pg_catalog.pg_inherits i ON i.inhrelid = base.oid
           UNION
           SELECT i.inhparent
           FROM above JOIN pg_catalog.pg_inherits i ON i.inhrelid = above.oid),
         showing AS (SELECT oid FROM masked UNION SELECT oid FROM above),
         seen AS (
           SELECT r.ev_class AS oid
           FROM showing
           JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
             AND d.refobjid = showing.oid
             AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
           JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
           WHERE r.ev_class <> showing.oid
           UNION
           SELECT r.ev_class
           FROM seen
           JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
             AND d.refobjid = seen.oid
             AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
           JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
           WHERE r.ev_class <> seen.oid),
         own AS (
           SELECT p.oid, p.proname, n.nspname, p.pronargs, p.pronargdefaults, p.proargtypes
           FROM pg_catalog.pg_proc p
           JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
           WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
             AND NOT EXISTS (
               SELECT 1 FROM pg_catalog.pg_depend d
               WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                 AND d.objid = p.oid AND d.deptype = 'e'))
         SELECT 'c', masked.oid::pg_catalog.text, masked.attnum::pg_catalog.text,
                CASE WHEN t.typcategory = 'S' AND s.prosrc IN ('textsend', 'varcharsend', 'bpcharsend', 'namesend')
                  THEN 't' ELSE 'f' END,
                masked.number::pg_catalog.text
         FROM masked JOIN pg_catalog.pg_type t ON t.oid = masked.atttypid
         LEFT JOIN pg_catalog.pg_proc s ON s.oid = t.typsend
         UNION
         SELECT 'x', pg_catalog.max(oid)::pg_catalog.text, '', '', '' FROM pg_catalog.pg_class
         UNION
         SELECT 'r', c.relname, pg_catalog.count(*)::pg_catalog.text, '', ''
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f')
           AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
         GROUP BY c.relname
         UNION
         SELECT 'l', n.nspname, c.relname, a.attname, a.attnum::pg_catalog.text
         FROM base
         JOIN pg_catalog.pg_class c ON c.oid = base.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
         WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
         UNION
         SELECT 'd', n.nspname, c.relname, c.oid::pg_catalog.text, ''
         FROM (SELECT oid FROM seen UNION SELECT oid FROM above
               UNION SELECT oid FROM child WHERE oid NOT IN (SELECT oid FROM base)) AS related
         JOIN pg_catalog.pg_class c ON c.oid = related.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         UNION
         SELECT 'n', n.nspname, c.relname, a.attname, ''
         FROM base
         JOIN pg_catalog.pg_class c ON c.oid = base.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
         UNION
         SELECT 'm', n.nspname, c.relname, rule.attname, ''
         FROM rule
         JOIN pg_catalog.pg_namespace n ON n.nspname = rule.nspname
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = rule.relname
         WHERE NOT EXISTS (SELECT 1 FROM base WHERE base.number = rule.number)
         UNION
         SELECT 'o', o.oprname, own.nspname, own.proname, ''
         FROM pg_catalog.pg_operator o JOIN own ON own.oid = o.oprcode
         UNION
         SELECT 't', t.typname, own.nspname, own.proname, ''
         FROM pg_catalog.pg_cast c JOIN own ON own.oid = c.castfunc
         JOIN pg_catalog.pg_type t ON t.oid = c.casttarget
         UNION
         SELECT 't', t.typname, own.nspname, own.proname, ''
         FROM pg_catalog.pg_constraint k
         JOIN pg_catalog.pg_type t ON t.oid = k.contypid
         JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
           AND d.objid = k.oid AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
         JOIN own ON own.oid = d.refobjid
         UNION
         SELECT 'a', own.proname, own.nspname, own.proname, ''
         FROM own
         JOIN pg_catalog.pg_type t ON t.oid = own.proargtypes[0]
         WHERE own.pronargs > 0 AND own.pronargs - own.pronargdefaults <= 1
           AND t.typtype IN ('c', 'p', 'd')",
        rules = rules.join(", ")
    )
}

fn table(schema: &str, name: &str) -> Table {
    Table {
        schema: Some(schema.to_owned()),
        name: name.to_owned(),
    }
}

fn literal(text: &str) -> String {
    // standard_conforming_strings is on: login checks that.
    format!("'{}'", text.replace('\'', "''"))
}

fn read(rows: &[Vec<Option<String>>], masks: &[MaskRule]) -> Result<Catalogue, CatalogueError> {
    let mut catalogue = Catalogue {
        masks: true,
        tables: masks.iter().map(|mask| mask.table.clone()).collect(),
        by_name: masks
            .iter()
            .map(|mask| (mask.column.to_lowercase(), mask.transform))
            .collect(),
        ..Catalogue::default()
    };
    let mut derived = Derived::default();
    let mut copied: BTreeMap<Table, BTreeMap<i16, String>> = BTreeMap::new();
    let mut shared = HashSet::new();
    for row in rows {
        let fields: Vec<&str> = row
            .iter()
            .map(|field| field.as_deref().unwrap_or_default())
            .collect();
        let unreadable = || CatalogueError(format!("it answered {fields:?}"));
        match fields[..] {
            ["c", table, attribute, text_like, number] => {
                let number: usize = number.parse().map_err(|_| unreadable())?;
                let mask = masks.get(number).ok_or_else(unreadable)?;
                let key = (
                    table.parse().map_err(|_| unreadable())?,
                    attribute.parse().map_err(|_| unreadable())?,
                );
                catalogue.columns.insert(
                    key,
                    MaskedColumn {
                        name: format!("{}.{}.{}", mask.schema, mask.table, mask.column),
                        transform: mask.transform,
                        text_like: text_like == "t",
                    },
                );
            }
            ["x", newest, _, _, _] => {
                catalogue.newest = newest.parse().map_err(|_| unreadable())?;
            }
            ["r", name, count, _, _] => {
                catalogue.relations.insert(name.to_owned());
                if count != "1" {
                    shared.insert(name);
                }
            }
            ["l", schema, name, column, attribute] => {
                let attribute = attribute.parse().map_err(|_| unreadable())?;
                let columns = copied.entry(table(schema, name)).or_default();
                columns.insert(attribute, column.to_owned());
            }
            ["d", schema, name, oid, _] => {
                derived.relations.insert(table(schema, name));
                let oid = oid.parse().map_err(|_| unreadable())?;
                catalogue.derived_oids.insert(oid);
            }
            ["m", schema, name, column, _] => {
                let lacking = &mut derived.lacking;
                lacking.insert(table(schema, name), column.to_owned());
            }
            ["n", schema, name, column, _] => {
                let columns = &mut derived.columns;
                columns
                    .entry(table(schema, name))
                    .or_default()
                    .insert(column.to_owned());
            }
            [kind @ ("o" | "t" | "a"), name, schema, function, _] => {
                let disguised = &mut derived.disguised;
                let calls = match kind {
                    "o" => &mut disguised.operators,
                    "t" => &mut disguised.types,
                    _ => &mut disguised.attributes,
                };
                let function = format!("{}.{}", unambiguous(schema), unambiguous(function));
                calls.entry(name.to_owned()).or_default().insert(function);
            }
            _ => return Err(unreadable()),
        }
    }
    for (table, columns) in copied {
        let mask = |column: &String| catalogue.mask_of(masks, &table, column);
        let layout = Layout {
            columns: columns
                .into_values()
                .map(|column| {
                    let mask = mask(&column);
                    (column, mask)
                })
                .collect(),
            // The system's own schemas come first in every search_path.
            alone: !shared.contains(table.name.as_str()) && !table.name.starts_with("pg_"),
        };
        derived.layouts.insert(table, layout);
    }
    catalogue.derived = Arc::new(derived);
    Ok(catalogue)
}

#[cfg(test)]
impl Catalogue {
    /// One masked text column.
    pub(super) fn masking_for_tests(table: u32, attribute: i16) -> Self {
        let column = MaskedColumn {
            name: "public.t.c".to_owned(),
            transform: Transform::Redact,
            text_like: true,
        };
        Self {
            columns: HashMap::from([((table, attribute), column)]),
            newest: u32::MAX,
            masks: true,
            ..Self::default()
        }
    }
}
