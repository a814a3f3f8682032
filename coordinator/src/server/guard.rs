//! Who may call: on TCP, who shows the token of the service.
//!
//! The Unix socket has no guard: its file is its owner's alone. Promise: a request without the
//! right token reaches no service, and what it showed is never printed.

use crate::config::network::Tokens;
use proto::{authorization::Secret, status::Report};
use std::sync::Arc;
use tonic::{Request, Status, service::Interceptor};

/// Lets a request through that carries one of these tokens; with none, every request.
#[derive(Clone, Debug)]
pub struct Guard {
    accepted: Arc<[Secret]>,
}

/// The guards of one listener.
#[derive(Clone, Debug)]
pub struct Guards {
    pub worker: Guard,
    pub operator: Guard,
    /// Health and reflection: for both.
    pub any: Guard,
}

impl From<&Tokens> for Guards {
    fn from(tokens: &Tokens) -> Self {
        let guard = |tokens: &[&Option<Secret>]| Guard {
            accepted: tokens.iter().filter_map(|token| (*token).clone()).collect(),
        };
        Self {
            worker: guard(&[&tokens.worker]),
            operator: guard(&[&tokens.operator]),
            any: guard(&[&tokens.worker, &tokens.operator]),
        }
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        // All of them are compared, whichever fits.
        let carried = self
            .accepted
            .iter()
            .fold(false, |found, token| found | token.is_carried_by(request.metadata()));
        if carried || self.accepted.is_empty() {
            return Ok(request);
        }
        Err(Report::definite("TOKEN_REFUSED", "no token, or another than this service wants")
            .with_hint("Give --token env:NAME or file:PATH; workers and operators have their own.")
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::authorization::carry;

    fn passes(guard: &mut Guard, token: Option<&Secret>) -> bool {
        let mut request = Request::new(());
        carry(request.metadata_mut(), token.and_then(Secret::bearer).as_ref());
        guard.call(request).is_ok()
    }

    #[test]
    fn each_service_wants_its_own_token() {
        let (worker, operator) = (Secret::new("w".repeat(16)), Secret::new("o".repeat(16)));
        let tokens = Tokens { worker: Some(worker.clone()), operator: Some(operator.clone()) };
        let mut guards = Guards::from(&tokens);
        for (guard, worker_passes, operator_passes) in [
            (&mut guards.worker, true, false),
            (&mut guards.operator, false, true),
            (&mut guards.any, true, true),
        ] {
            assert_eq!(passes(guard, Some(&worker)), worker_passes);
            assert_eq!(passes(guard, Some(&operator)), operator_passes);
            assert!(!passes(guard, None));
            assert!(!passes(guard, Some(&Secret::new("x".repeat(16)))));
        }
        assert!(passes(&mut Guards::from(&Tokens::default()).worker, None));
    }
}
