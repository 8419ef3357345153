//! Long reads end on the server when whoever waits for them gives up.

use std::time::Duration;

use deadpool_postgres::Object;
use tokio::runtime::Handle;
use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;

/// How long telling the server may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection in use for a long read. Dropped before [`LongRead::done`], it cancels the query and closes the
/// connection: a late cancellation must not hit whoever has it next.
#[derive(Default)]
pub(super) struct LongRead {
    client: Option<Object>,
}

impl LongRead {
    /// Reads on this connection.
    pub(super) fn on(&mut self, client: Object) -> &mut Object {
        self.client.insert(client)
    }

    /// Nothing is read any more: others may have the connection.
    pub(super) fn done(mut self) {
        drop(self.client.take());
    }
}

impl Drop for LongRead {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let token = client.cancel_token();
        drop(Object::take(client));
        // Without a runtime this process is ending, and its connections with it.
        let Ok(runtime) = Handle::try_current() else { return };
        let cancel = async move {
            if let Ok(Err(error)) = tokio::time::timeout(LIMIT, token.cancel_query(NoTls)).await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a query that nobody waits for was not cancelled");
            }
        };
        TaskTracker::new().spawn_on(cancel, &runtime);
    }
}
