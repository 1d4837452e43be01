//! The cases F81 to F112 of the security reference that a guest or a file can bring upon this crate, each by its number: I only
//! this guest suffers, R refused before any side effect, B bounded, N must work. Others stand beside what they are about, or
//! elsewhere; the table in docs/design/0018-own-vmm.md says where.

mod chains;
mod devices;
mod rings;
