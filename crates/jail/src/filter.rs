//! A filter of system calls: a list of those that are allowed, some only with certain arguments. Any other ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::JailError;

/// What an argument must be. Shape: its lower 32 bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// This value.
    Equal(u64),
    /// This value in the bits of the mask.
    Masked {
        /// The bits that count.
        mask: u64,
        /// Their value.
        value: u64,
    },
}

/// A condition on an argument. Shape: its number, from 0.
pub type Argument = (u8, Is);

/// Calls that are allowed.
#[derive(Debug, Clone)]
pub struct Filter {
    rules: BTreeMap<i64, Vec<SeccompRule>>,
}

impl Filter {
    /// A filter that allows these calls, whatever their arguments.
    #[must_use]
    pub fn allowing(calls: impl IntoIterator<Item = libc::c_long>) -> Self {
        Self { rules: calls.into_iter().map(|call| (call, Vec::new())).collect() }
    }

    /// Allows a call where all conditions hold; beside other such places, but not beside [`Filter::allowing`].
    ///
    /// # Errors
    /// When there is no such condition.
    pub fn only_where(mut self, call: libc::c_long, arguments: &[Argument]) -> Result<Self, JailError> {
        let conditions = arguments.iter().map(|&(number, is)| {
            let (operation, value) = match is {
                Is::Equal(value) => (SeccompCmpOp::Eq, value),
                Is::Masked { mask, value } => (SeccompCmpOp::MaskedEq(mask), value),
            };
            SeccompCondition::new(number, SeccompCmpArgLen::Dword, operation, value)
        });
        let conditions = conditions.collect::<Result<_, _>>().map_err(seccompiler::Error::Backend)?;
        let rule = SeccompRule::new(conditions).map_err(seccompiler::Error::Backend)?;
        self.rules.entry(call).or_default().push(rule);
        Ok(self)
    }

    /// Allows calls that give memory, but never such that could hold code. Shape: calls whose third argument is the protection.
    ///
    /// # Errors
    /// As [`Filter::only_where`].
    pub fn memory_without_code(self, calls: &[libc::c_long]) -> Result<Self, JailError> {
        let code = Is::Masked { mask: libc::PROT_EXEC.unsigned_abs().into(), value: 0 };
        calls.iter().try_fold(self, |filter, &call| filter.only_where(call, &[(2, code)]))
    }

    /// Lets the process signal its own threads, with these. abort(3) needs SIGABRT.
    ///
    /// # Errors
    /// As [`Filter::only_where`].
    pub fn signals_to_itself(self, signals: &[libc::c_int]) -> Result<Self, JailError> {
        let itself = (0, Is::Equal(std::process::id().into()));
        signals.iter().try_fold(self, |filter, signal| {
            filter.only_where(libc::SYS_tgkill, &[itself, (2, Is::Equal(signal.unsigned_abs().into()))])
        })
    }

    /// Filters this thread's system calls from now on. When: no_new_privs is set, as [`Jail::enter`](crate::Jail::enter) leaves it.
    ///
    /// # Errors
    /// When the kernel does not take the filter; the process must end.
    pub fn install(self) -> Result<(), JailError> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(seccompiler::Error::Backend)?;
        let filter = SeccompFilter::new(self.rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)
            .map_err(seccompiler::Error::Backend)?;
        let program: BpfProgram = filter.try_into().map_err(seccompiler::Error::Backend)?;
        Ok(apply_filter(&program)?)
    }

    /// True when the call is allowed with some arguments.
    #[must_use]
    pub fn allows(&self, call: libc::c_long) -> bool {
        self.rules.contains_key(&call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_allowed_whole_or_in_places() {
        let filter = Filter::allowing([libc::SYS_read]).memory_without_code(&[libc::SYS_mmap]).unwrap();
        let filter = filter.signals_to_itself(&[libc::SIGABRT, libc::SIGUSR1]).unwrap();
        let (whole, places) = (&filter.rules[&libc::SYS_read], &filter.rules[&libc::SYS_tgkill]);
        assert_eq!((whole.len(), places.len(), filter.rules[&libc::SYS_mmap].len()), (0, 2, 1));
        assert!(filter.allows(libc::SYS_mmap) && !filter.allows(libc::SYS_openat));
    }
}
