//! The same question of many at once is answered once.
//!
//! When an alarm comes, every page asks for the same lists. Who asks while the answer to the same question is being made waits for
//! the next one, which all that came meanwhile share: nobody is shown what is older than their question.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, Uri},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};

use super::problem::ApiError;
use crate::users::scope::Scope;

/// The routes whose answers go by the path, the query and the scope alone.
pub const ROUTES: [&str; 3] = ["/api/v1/machines", "/api/v1/alarms", "/api/v1/incidents"];
/// Questions that are remembered before those that nobody waits for are forgotten.
const QUESTIONS_KEPT: usize = 256;
/// The largest answer that is shared.
const ANSWER_BYTES_MAX: usize = 16 * 1_024 * 1_024;

type Question = (Scope, Uri);
type Answer = Shared<BoxFuture<'static, (StatusCode, HeaderMap, Bytes)>>;

/// The questions that are being answered.
#[derive(Debug, Default)]
pub struct Together(Mutex<HashMap<Question, Asked>>);

#[derive(Debug, Default)]
struct Asked {
    /// Held while an answer is made.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The answer that nobody has begun to make.
    next: Option<WeakShared<BoxFuture<'static, (StatusCode, HeaderMap, Bytes)>>>,
}

impl Together {
    /// The answer to a request of this scope, shared with who asks the same meanwhile.
    pub async fn answer(self: &Arc<Self>, scope: &Scope, request: Request, next: Next) -> Response {
        let question = (scope.clone(), request.uri().clone());
        let (status, headers, body) = self.next(question, async move { whole(next.run(request).await).await }).await;
        let mut response = Response::new(Body::from(body));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        response
    }

    /// The next answer to be made, which is `make` unless somebody waits for one already.
    fn next(
        self: &Arc<Self>,
        question: Question,
        make: impl Future<Output = (StatusCode, HeaderMap, Bytes)> + Send + 'static,
    ) -> Answer {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= QUESTIONS_KEPT {
            all.retain(|_, asked| Arc::strong_count(&asked.turn) > 1);
        }
        let asked = all.entry(question.clone()).or_default();
        if let Some(answer) = asked.next.as_ref().and_then(WeakShared::upgrade) {
            return answer;
        }
        let (together, turn) = (Arc::clone(self), Arc::clone(&asked.turn));
        let answer = async move {
            let _turn = turn.lock().await;
            together.begin(&question);
            make.await
        };
        let answer = answer.boxed().shared();
        asked.next = answer.downgrade();
        answer
    }

    /// From now on who asks this waits for another answer.
    fn begin(&self, question: &Question) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = all.get_mut(question) {
            asked.next = None;
        }
    }
}

async fn whole(response: Response) -> (StatusCode, HeaderMap, Bytes) {
    let (parts, body) = response.into_parts();
    if let Ok(body) = to_bytes(body, ANSWER_BYTES_MAX).await {
        return (parts.status, parts.headers, body);
    }
    let (parts, body) = ApiError::internal().into_response().into_parts();
    (parts.status, parts.headers, to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;

    fn question(path: &'static str) -> Question {
        (Scope::new(Uuid::nil(), &[], &[]), Uri::from_static(path))
    }

    fn told(made: &Arc<AtomicU8>, by: u8) -> (StatusCode, HeaderMap, Bytes) {
        made.fetch_add(1, Ordering::Relaxed);
        (StatusCode::OK, HeaderMap::new(), Bytes::from(vec![by]))
    }

    #[tokio::test]
    async fn who_comes_while_an_answer_is_made_shares_the_next_one() {
        let (together, made) = (Arc::new(Together::default()), Arc::new(AtomicU8::new(0)));
        let (go, gone) = oneshot::channel::<()>();
        let first = together.next(question("/a"), {
            let made = Arc::clone(&made);
            async move {
                gone.await.ok();
                told(&made, 1)
            }
        });
        let first = tokio::spawn(first);
        tokio::task::yield_now().await;
        let later: Vec<_> = (2..5)
            .map(|by| {
                let made = Arc::clone(&made);
                together.next(question("/a"), async move { told(&made, by) })
            })
            .collect();
        let other = {
            let made = Arc::clone(&made);
            together.next(question("/b"), async move { told(&made, 9) })
        };
        assert_eq!(other.await.2, Bytes::from_static(&[9]), "another question does not wait");
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap().2, Bytes::from_static(&[1]));
        for answer in later {
            assert_eq!(answer.await.2, Bytes::from_static(&[2]), "made once, after the first");
        }
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn who_goes_away_keeps_nobody_waiting() {
        let (together, made) = (Arc::new(Together::default()), Arc::new(AtomicU8::new(0)));
        let stuck = tokio::spawn(together.next(question("/a"), std::future::pending()));
        tokio::task::yield_now().await;
        let next = together.next(question("/a"), std::future::pending());
        drop(next);
        stuck.abort();
        assert!(stuck.await.is_err());
        let answer = together.next(question("/a"), {
            let made = Arc::clone(&made);
            async move { told(&made, 7) }
        });
        assert_eq!(answer.await.2, Bytes::from_static(&[7]));
        for _ in 0..2 * QUESTIONS_KEPT {
            drop(together.next(question("/a"), std::future::pending()));
        }
        assert!(together.0.lock().unwrap().len() <= QUESTIONS_KEPT);
    }
}
