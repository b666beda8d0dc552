//! The types whose values can be read, by the OIDs they have in every PostgreSQL (`pg_type.dat`).

/// What the bytes of a value in binary format are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Bool,
    /// One byte, `"char"`.
    Char,
    Int2,
    Int4,
    Int8,
    Oid,
    Xid8,
    Float4,
    Float8,
    Numeric,
    Money,
    Bits,
    Lsn,
    /// The text itself.
    Text,
    /// The text behind a version byte.
    Versioned,
    Bytea,
    Uuid,
    Mac,
    Address,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Array,
    /// Of values of this type.
    Range(u32),
    Multirange(u32),
}

struct Type {
    oid: u32,
    /// The type of its arrays; 0 where there is none.
    array: u32,
    name: &'static str,
    form: Form,
}

const fn of(oid: u32, array: u32, name: &'static str, form: Form) -> Type {
    Type {
        oid,
        array,
        name,
        form,
    }
}

/// The commonest first: it is searched from the front.
const TYPES: [Type; 58] = [
    of(25, 1009, "text", Form::Text),
    of(23, 1007, "int4", Form::Int4),
    of(20, 1016, "int8", Form::Int8),
    of(1043, 1015, "varchar", Form::Text),
    of(16, 1000, "bool", Form::Bool),
    of(1700, 1231, "numeric", Form::Numeric),
    of(701, 1022, "float8", Form::Float8),
    of(1184, 1185, "timestamptz", Form::TimestampTz),
    of(1114, 1115, "timestamp", Form::Timestamp),
    of(1082, 1182, "date", Form::Date),
    of(2950, 2951, "uuid", Form::Uuid),
    of(3802, 3807, "jsonb", Form::Versioned),
    of(114, 199, "json", Form::Text),
    of(17, 1001, "bytea", Form::Bytea),
    of(21, 1005, "int2", Form::Int2),
    of(700, 1021, "float4", Form::Float4),
    of(1042, 1014, "bpchar", Form::Text),
    of(18, 1002, "char", Form::Char),
    of(19, 1003, "name", Form::Text),
    of(705, 0, "unknown", Form::Text),
    of(26, 1028, "oid", Form::Oid),
    of(1083, 1183, "time", Form::Time),
    of(1266, 1270, "timetz", Form::TimeTz),
    of(1186, 1187, "interval", Form::Interval),
    of(869, 1041, "inet", Form::Address),
    of(650, 651, "cidr", Form::Address),
    of(829, 1040, "macaddr", Form::Mac),
    of(774, 775, "macaddr8", Form::Mac),
    of(790, 791, "money", Form::Money),
    of(142, 143, "xml", Form::Text),
    of(4072, 4073, "jsonpath", Form::Versioned),
    of(1560, 1561, "bit", Form::Bits),
    of(1562, 1563, "varbit", Form::Bits),
    of(1790, 2201, "refcursor", Form::Text),
    of(3220, 3221, "pg_lsn", Form::Lsn),
    of(28, 1011, "xid", Form::Oid),
    of(29, 1012, "cid", Form::Oid),
    of(5069, 271, "xid8", Form::Xid8),
    // What these point at has a name only where they are.
    of(24, 1008, "regproc", Form::Oid),
    of(2202, 2207, "regprocedure", Form::Oid),
    of(2203, 2208, "regoper", Form::Oid),
    of(2204, 2209, "regoperator", Form::Oid),
    of(2205, 2210, "regclass", Form::Oid),
    of(2206, 2211, "regtype", Form::Oid),
    of(4089, 4090, "regnamespace", Form::Oid),
    of(4096, 4097, "regrole", Form::Oid),
    of(3904, 3905, "int4range", Form::Range(23)),
    of(3926, 3927, "int8range", Form::Range(20)),
    of(3906, 3907, "numrange", Form::Range(1700)),
    of(3908, 3909, "tsrange", Form::Range(1114)),
    of(3910, 3911, "tstzrange", Form::Range(1184)),
    of(3912, 3913, "daterange", Form::Range(1082)),
    of(4451, 6150, "int4multirange", Form::Multirange(23)),
    of(4536, 6157, "int8multirange", Form::Multirange(20)),
    of(4532, 6151, "nummultirange", Form::Multirange(1700)),
    of(4533, 6152, "tsmultirange", Form::Multirange(1114)),
    of(4534, 6153, "tstzmultirange", Form::Multirange(1184)),
    of(4535, 6155, "datemultirange", Form::Multirange(1082)),
];

/// cidr and inet have one form and two texts, told apart by a byte in the value itself.
pub(super) fn form_of(oid: u32) -> Option<Form> {
    TYPES.iter().find_map(|known| match oid {
        _ if oid == known.oid => Some(known.form),
        _ if oid == known.array && oid != 0 => Some(Form::Array),
        _ => None,
    })
}

/// What PostgreSQL calls a type; its number where only the database knows the name, and nothing for
/// one that the client left to the server and never asked about.
pub fn name(oid: u32) -> Option<String> {
    if oid == 0 {
        return None;
    }
    let known = TYPES.iter().find_map(|known| match oid {
        _ if oid == known.oid => Some(known.name.to_owned()),
        _ if oid == known.array => Some(format!("{}[]", known.name)),
        _ => None,
    });
    Some(known.unwrap_or_else(|| oid.to_string()))
}

#[cfg(test)]
pub(super) fn oids() -> Vec<u32> {
    TYPES
        .iter()
        .flat_map(|known| [known.oid, known.array])
        .collect()
}
