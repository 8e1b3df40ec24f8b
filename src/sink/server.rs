//! One server: its connection, deletions with their marks, and what its answers say.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::task::Poll;

use fred::interfaces::{ClientLike as _, KeysInterface};
use fred::types::Value;
use futures_util::future::join;
use tokio::sync::Mutex;

use super::connection::{Connection, Settings, command_error, custom};
use super::error::{self, Error};
use super::fence::Breach;
use super::groups::Groups;
use super::marks::{self, Marks};
use super::sentinel::{self, Sentinels};
use super::slots::Redirect;
use super::wire::{Address, End};
use crate::mark::{Answer, Found, RedisMark};
use crate::status;

/// How a server is found.
pub(super) enum Way {
    /// There it is.
    At(Address),
    /// The same, and it wants neither password nor database.
    Bare(Address),
    /// Where the sentinels say.
    Sentinels(Arc<Sentinels>),
}

/// See the module.
pub(super) struct Server {
    settings: Settings,
    way: Way,
    pub(super) marking: Option<Marking>,
    pub(super) scan_count: AtomicU32,
    connection: Mutex<Option<Connection>>,
}

/// The marks of a server.
#[derive(Clone)]
pub(super) struct Marking {
    pub(super) marks: Arc<Marks>,
    /// Of the key; empty where there is one server.
    pub(super) tag: Arc<str>,
    /// Its name.
    key: String,
    untold: Arc<SyncMutex<Option<Found>>>, // what a connection found, until one of its answers said it
}

impl Marking {
    pub(super) fn new(marks: &Arc<Marks>, tag: Arc<str>) -> Self {
        let key = if tag.is_empty() {
            marks.key().to_owned()
        } else {
            format!("{}:{{{tag}}}", marks.key())
        };
        Self { marks: marks.clone(), tag, key, untold: Arc::default() }
    }
}

/// What a command brought.
pub(super) struct Outcome {
    /// How many of the keys existed.
    pub(super) existed: u64,
    pub(super) answer: Answer,
    /// Which of the groups live elsewhere, by their places in the command.
    pub(super) elsewhere: Vec<(usize, Redirect)>,
    /// Which of the groups hold a key that the user may not touch, and what Redis said.
    pub(super) refused: Vec<(usize, String)>,
}

/// How a command for keys is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// To the one server that there is.
    Alone,
    /// Each group is of one slot.
    BySlot,
    /// Each group is of one slot that is on its way to this server.
    Asking,
}

impl Server {
    /// Connects when first asked for something.
    pub(super) fn new(settings: Settings, way: Way, marking: Option<Marking>) -> Self {
        Self {
            settings,
            way,
            marking,
            scan_count: AtomicU32::new(super::walk::SCAN_COUNT),
            connection: Mutex::new(None),
        }
    }

    /// UNLINK of each group, and the mark.
    ///
    /// # Errors
    /// Then some of it may have been done, and all of it is to be repeated.
    pub(super) async fn delete(&self, groups: &Groups, manner: Manner) -> Result<Outcome, Error> {
        let connection = self.connection().await?;
        let result = self.delete_over(&connection, groups, manner).await;
        self.concluded(&connection, result).await
    }

    pub(super) async fn delete_over(
        &self,
        connection: &Connection,
        groups: &Groups,
        manner: Manner,
    ) -> Result<Outcome, Error> {
        match self.delete_and_mark(connection, groups, manner).await {
            Err(Error::Refused(words)) if connection.needs_del(&words) => {
                self.delete_and_mark(connection, groups, manner).await
            }
            result => result,
        }
    }

    /// What an answer has reported is not reported again. A connection that failed is replaced.
    pub(super) async fn concluded<T>(
        &self,
        connection: &Connection,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        match result {
            Ok(done) => {
                if let Some(Marking { untold, .. }) = &self.marking {
                    drop(lock(untold).take_if(|untold| *untold == connection.found));
                }
                Ok(done)
            }
            Err(error) => {
                self.replace(connection).await;
                if let Some(End::Breach(Breach::Bytes | Breach::Parts)) = connection.verdict.get() {
                    // Perhaps of a thousand very long keys: the next walk asks for fewer at once.
                    let _ = self
                        .scan_count
                        .fetch_update(Relaxed, Relaxed, |count| Some((count / 10).max(1)));
                }
                Err(connection.verdict.get().map_or(error, |end| end.clone().into_error()))
            }
        }
    }

    /// UNLINK and the mark behind it, in this order on the same connection. Nothing is deleted
    /// without keys.
    pub(super) async fn delete_and_mark(
        &self,
        connection: &Connection,
        groups: &Groups,
        manner: Manner,
    ) -> Result<Outcome, Error> {
        let Connection { client, number, found, state, timeout, .. } = connection;
        let tag = self.marking.as_ref().map_or_else(|| "".into(), |marking| marking.tag.clone());
        let mark = RedisMark { life: "".into(), connection: *number, number: 0 };
        let mut answer = Answer { tag, found: found.clone(), mark, is_marked: false };
        let unlinks = state.unlinks.load(Relaxed);
        let in_words = |error: fred::error::Error| command_error(&error, *timeout);

        let order = state.order.lock().await;
        let pipeline = client.pipeline();
        for group in groups.iter() {
            if manner == Manner::Asking {
                pipeline
                    .custom::<(), String>(custom("ASKING"), Vec::new())
                    .await
                    .map_err(in_words)?;
            }
            match unlinks {
                true => pipeline.unlink::<(), _>(group.to_vec()).await.map_err(in_words)?,
                false => pipeline.del::<(), _>(group.to_vec()).await.map_err(in_words)?,
            }
        }
        let least = lock(&state.acknowledged).clone();
        let mut marking = None;
        if let Some(Marking { marks, key, .. }) = &self.marking {
            answer.mark = marks.next(*number);
            marking = state.may_mark.load(Relaxed).then(|| (key, answer.mark.to_string()));
            answer.is_marked = marking.is_some();
        }
        // fred sends each command of a pipeline by a write of its own, unless something waits
        // behind it: so something does.
        let behind = async {
            match marking {
                Some((key, mark)) => Some(client.set(key, mark, None, None, true).await),
                None if groups.len() > 1 => Some(client.ping(None).await),
                None => None,
            }
        };
        let mut replies = pin!(join(pipeline.try_all::<Value>(), behind));
        // The first poll hands them over, in this order.
        let first =
            std::future::poll_fn(|context| Poll::Ready(replies.as_mut().poll(context))).await;
        drop(order);
        let (replies, behind) = match first {
            Poll::Ready(replies) => replies,
            Poll::Pending => connection.ask(async { Ok(replies.await) }).await?,
        };

        let mut outcome =
            counted(connection, groups.len(), manner, &mut replies.into_iter(), answer)?;
        if outcome.answer.is_marked {
            outcome.answer.is_marked =
                self.marked(connection, &outcome.answer.mark, &least, behind)?;
        }
        Ok(outcome)
    }

    /// What SET said to the mark: was it written? It also brings the mark before it, which shows a
    /// server that was set back behind a proxy, so that the connection did not end.
    fn marked(
        &self,
        connection: &Connection,
        mark: &RedisMark,
        least: &Found,
        reply: Option<Result<Value, fred::error::Error>>,
    ) -> Result<bool, Error> {
        let before = match reply {
            Some(Ok(before)) => marks::found(before.as_str().as_deref()),
            Some(Err(error)) => {
                let error = command_error(&error, connection.timeout);
                let Error::Refused(words) = &error else { return Err(error) };
                // A full server refuses it now and then, one whose slot is moved until another key
                // is chosen; one that does not know the command, or whose user may not, always.
                if error::code(words) != Some("OOM") && Redirect::read(words).is_none() {
                    connection.state.may_mark.store(false, Relaxed);
                }
                return Ok(false);
            }
            None => return Err(Error::Ended),
        };
        if marks::is_set_back(&before, least, mark)
            && let Some(Marking { untold, .. }) = &self.marking
        {
            let mut untold = lock(untold);
            *untold = Some(before.after(untold.take(), &mark.life));
            return Err(Error::SetBack);
        }
        *lock(&connection.state.acknowledged) = Found::Mark(mark.clone());
        Ok(true)
    }

    /// Does it answer?
    ///
    /// # Errors
    /// [`Error`]; the next command connects anew.
    pub(super) async fn touch(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        let answer = connection.say::<Value>("PING", Vec::new()).await;
        if answer.is_err() {
            self.replace(&connection).await;
        }
        answer.map(drop)
    }

    pub(super) fn is_behind_sentinel(&self) -> bool {
        matches!(self.way, Way::Sentinels(_))
    }

    /// As far as is known without asking it.
    pub(super) fn standing(&self) -> status::Server {
        let connected = self
            .connection
            .try_lock()
            .ok()
            .and_then(|place| place.clone())
            .filter(|connection| !connection.ended.is_cancelled());
        let address = match &self.way {
            Way::At(server) | Way::Bare(server) => Some(server.to_string()),
            Way::Sentinels(_) => {
                connected.as_ref().map(|connection| connection.address.to_string())
            }
        };
        let why_not = connected.is_none().then(|| "there is no connection".to_owned());
        status::Server { address, answers: connected.is_some(), why_not }
    }

    /// The connection that there is, or a new one.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        let mut place = self.connection.lock().await;
        if let Some(connection) =
            place.as_ref().filter(|connection| !connection.ended.is_cancelled())
        {
            return Ok(connection.clone());
        }
        let connection = self.connect().await?;
        *place = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let mut connection = match &self.way {
            Way::At(server) => Connection::open(&self.settings, server, true).await?,
            Way::Bare(server) => Connection::open(&self.settings, server, false).await?,
            Way::Sentinels(sentinels) => {
                sentinel::open(self.settings.clone(), sentinels.clone()).await?
            }
        };
        if let Some(Marking { marks, key, untold, .. }) = &self.marking {
            connection.number = marks.next_connection();
            let read = read_mark(&connection, key).await?;
            *lock(&connection.state.acknowledged) = read.clone();
            let mut untold = lock(untold);
            connection.found = read.after(untold.take(), marks.life());
            *untold = Some(connection.found.clone());
        }
        Ok(connection)
    }

    /// The next command connects anew, unless somebody has already done so.
    async fn replace(&self, failed: &Connection) {
        failed.close();
        let mut place = self.connection.lock().await;
        if place.as_ref().is_some_and(|current| Arc::ptr_eq(&current.state, &failed.state)) {
            *place = None;
        }
    }
}

/// How many keys existed, and which groups live elsewhere, or were refused for one of their keys.
fn counted(
    connection: &Connection,
    groups: usize,
    manner: Manner,
    replies: &mut impl Iterator<Item = Result<Value, fred::error::Error>>,
    answer: Answer,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome { existed: 0, answer, elsewhere: Vec::new(), refused: Vec::new() };
    for group in 0..groups {
        if manner == Manner::Asking {
            replies.next();
        }
        match replies.next().unwrap_or(Ok(Value::Null)).and_then(Value::convert::<u64>) {
            Ok(number) => outcome.existed += number,
            Err(error) => match command_error(&error, connection.timeout) {
                Error::Refused(words) if error::is_of_key(&words) => {
                    outcome.refused.push((group, words))
                }
                Error::Refused(words) => {
                    match Redirect::read(&words).filter(|_| manner != Manner::Alone) {
                        Some(redirect) => outcome.elsewhere.push((group, redirect)),
                        None => return Err(Error::Refused(words)),
                    }
                }
                error => return Err(error),
            },
        }
    }
    Ok(outcome)
}

async fn read_mark(connection: &Connection, key: &str) -> Result<Found, Error> {
    match connection.ask(connection.client.get::<Option<String>, _>(key)).await {
        Ok(value) => Ok(marks::found(value.as_deref())),
        Err(Error::Refused(words)) if matches!(error::code(&words), Some("NOPERM" | "ERR")) => {
            Ok(Found::Refused)
        }
        // The slot is on its way elsewhere: what was marked there is not known here.
        Err(Error::Refused(words)) if Redirect::read(&words).is_some() => Ok(Found::Nothing),
        Err(error) => Err(error),
    }
}

pub(super) fn lock<T>(mutex: &SyncMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // nobody panics with it
}
