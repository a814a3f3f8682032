//! SQLSTATE to what may be done about it.
//!
//! Source: PostgreSQL manual, appendix A (errcodes). Unknown codes, and XX000 (a catalog row that
//! another session changed at the same time), are transient: who tries again bounds the attempts
//! at [`is_unknown`], since a migration must not spin for ever.

use crate::error::Class;

/// Class of a server error.
pub fn class(sqlstate: &str) -> Class {
    match sqlstate {
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => Class::Transient,
        // admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
        "57P01" | "57P02" | "57P03" | "57P05" => Class::Transient,
        // query_canceled (a timeout of ours, or a person), idle in transaction timeouts
        "57014" | "25P03" | "25P04" => Class::Transient,
        // too_many_connections, out_of_memory, object_in_use (slot active)
        "53300" | "53200" | "55006" => Class::Transient,
        // database_dropped, data_corrupted, index_corrupted: no attempt mends them
        "57P04" | "XX001" | "XX002" => Class::Definite,
        // disk_full: freed by a person, then it goes on; retried slowly
        "53100" => Class::Transient,
        code if code.starts_with("08") || code.starts_with("58") => Class::Transient,
        code => match &code[..2.min(code.len())] {
            // feature, cardinality, data, constraint, transaction state, authorisation,
            // dependent objects, syntax or access rule, limits, object state; raised by user code
            // (a trigger, an event trigger), external routines, foreign data, configuration file
            "0A" | "21" | "22" | "23" | "25" | "28" | "2B" | "2F" | "34" | "3B" | "3D" | "3F"
            | "42" | "44" | "54" | "55" | "P0" | "09" | "0L" | "0P" | "20" | "24" | "26" | "27"
            | "2D" | "38" | "39" | "F0" | "HV" => Class::Definite,
            _ => Class::Transient,
        },
    }
}

/// Whether a transient code says nothing of why: after some attempts it is taken for definite.
pub fn is_unknown(sqlstate: &str) -> bool {
    class(sqlstate) == Class::Transient
        && !["08", "40", "53", "55", "57", "58", "25"].contains(&sqlstate.get(..2).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadlock_is_retried_and_a_constraint_is_not() {
        assert_eq!(class("40P01"), Class::Transient);
        assert_eq!(class("23505"), Class::Definite);
        assert_eq!(class("53100"), Class::Transient);
        // raise_exception, for example from the function of a CHECK.
        assert_eq!(class("P0001"), Class::Definite);
        assert_eq!(class(""), Class::Transient);
        assert_eq!(class("57P04"), Class::Definite);
    }
}
