//! The state of the call that runs in an interpreter: its limits, its effects, its modules.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mlua::{Error, Lua, Table};

use super::{
    clock::Clock,
    journal::{Effect, Journal, Outcome},
    library::Library,
    permits::{self, RunPermit},
};

/// How long a call may wait for the outside in total.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Where a call runs.
pub enum Place {
    /// A thread that serves requests: nothing waits, and what is done is recorded.
    Serving,
    /// Another thread, perhaps after a run on a serving thread.
    Elsewhere(Journal, RunPermit),
    /// A thread of the caller's own.
    Here,
}

/// The state of the current call. Shared by all natives of an interpreter.
#[derive(Clone)]
pub struct Call(Rc<State>);

struct State {
    clock: Clock,
    serving: Cell<bool>,
    journal: RefCell<Journal>,
    permit: RefCell<Option<RunPermit>>,
    busy: Cell<bool>,
    waited: Cell<Duration>,
    /// State of the random numbers; `None` before the first one.
    random: Cell<Option<u64>>,
    library: RefCell<Option<Arc<Library>>>,
    http: Cell<bool>,
    /// Values of modules, by name.
    loaded: RefCell<Option<Table>>,
}

impl Call {
    pub fn new(clock: Clock) -> Self {
        Self(Rc::new(State {
            clock,
            serving: Cell::new(false),
            journal: RefCell::default(),
            permit: RefCell::default(),
            busy: Cell::new(false),
            waited: Cell::default(),
            random: Cell::new(None),
            library: RefCell::default(),
            http: Cell::new(false),
            loaded: RefCell::default(),
        }))
    }

    /// Begins a call. `library`: if the script may use it; `http`: whether it may use that word.
    pub fn begin(&self, place: Place, library: Option<&Arc<Library>>, http: bool) {
        let state = &*self.0;
        state.serving.set(matches!(place, Place::Serving));
        match place {
            Place::Elsewhere(journal, permit) => {
                state.journal.replace(journal);
                state.permit.replace(Some(permit));
            }
            Place::Serving | Place::Here => state.journal.borrow_mut().clear(),
        }
        state.busy.set(false);
        state.waited.set(Duration::ZERO);
        state.random.set(None);
        state.http.set(http);
        if let Some(library) = library {
            state.library.replace(Some(Arc::clone(library)));
        }
    }

    /// Ends a call; what it has done, if it was on a serving thread.
    pub fn end(&self) {
        let state = &*self.0;
        state.permit.take();
        if state.library.borrow().is_some() {
            state.library.take();
            state.loaded.take();
        }
    }

    /// What a call on a serving thread has done.
    pub fn take_journal(&self) -> Journal {
        self.0.journal.take()
    }

    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Whether the call was ended because too many calls wait.
    pub fn is_busy(&self) -> bool {
        self.0.busy.get()
    }

    pub fn may_use_http(&self) -> bool {
        self.0.http.get()
    }

    /// The library of the script.
    ///
    /// # Errors
    /// If it has none.
    pub fn library(&self) -> mlua::Result<Arc<Library>> {
        self.0.library.borrow().clone().ok_or_else(|| Error::runtime("it is not available here"))
    }

    /// The values of the call's modules.
    pub fn loaded(&self, lua: &Lua) -> mlua::Result<Table> {
        let mut loaded = self.0.loaded.borrow_mut();
        if let Some(loaded) = &*loaded {
            return Ok(loaded.clone());
        }
        let made = lua.create_table()?;
        *loaded = Some(made.clone());
        Ok(made)
    }

    /// Unix time in milliseconds.
    pub fn now(&self, lua: &Lua) -> mlua::Result<u64> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match self.effect(lua, Effect::Now, |_| Outcome::Number(now().as_millis() as u64))? {
            Outcome::Number(millis) => Ok(millis),
            _ => Ok(0),
        }
    }

    /// 64 random bits.
    pub fn random(&self, lua: &Lua) -> mlua::Result<u64> {
        let state = match self.0.random.get() {
            Some(state) => state,
            None => match self.effect(lua, Effect::Seed, |_| Outcome::Number(rand::random()))? {
                Outcome::Number(seed) => seed,
                _ => 0,
            },
        };
        // SplitMix64.
        let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.random.set(Some(state));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(mixed ^ (mixed >> 31))
    }

    /// Does something that does not wait, or returns what it was when it was done before.
    ///
    /// # Errors
    /// If the call must end.
    pub fn effect(
        &self,
        lua: &Lua,
        effect: Effect,
        run: impl FnOnce(&Effect) -> Outcome,
    ) -> mlua::Result<Outcome> {
        let state = &*self.0;
        if !state.serving.get() {
            if let Some(known) = state.journal.borrow_mut().replay(&effect) {
                return Ok(known);
            }
            return Ok(run(&effect));
        }
        let outcome = run(&effect);
        if state.journal.borrow_mut().record(effect, outcome.clone()) {
            return Ok(outcome);
        }
        Err(state.clock.end(lua))
    }

    /// Does something that waits: never on a serving thread, where the call ends and is started again
    /// elsewhere. Meanwhile the time of the script stands still, and its permit is returned.
    ///
    /// # Errors
    /// If the call must end.
    pub fn wait(
        &self,
        lua: &Lua,
        effect: Effect,
        run: impl FnOnce(&Effect) -> Outcome,
    ) -> mlua::Result<Outcome> {
        let state = &*self.0;
        if state.serving.get() {
            return Err(state.clock.end(lua));
        }
        state.clock.check(lua)?;
        if let Some(known) = state.journal.borrow_mut().replay(&effect) {
            return Ok(known);
        }
        let Ok(place) = permits::waiting_place() else { return Err(self.end_busy(lua)) };
        let began = Instant::now();
        let mut permit = state.permit.take();
        if let Some(permit) = &mut permit {
            permit.release();
        }
        let outcome = run(&effect);
        let again = permit.as_mut().map_or(Ok(()), RunPermit::take_again);
        drop(place);
        state.permit.replace(permit);
        let waited = began.elapsed();
        state.clock.pause(waited);
        state.waited.set(state.waited.get() + waited);
        if again.is_err() {
            return Err(self.end_busy(lua));
        }
        if state.waited.get() > LONGEST_WAIT {
            return Err(state.clock.end(lua));
        }
        Ok(outcome)
    }

    fn end_busy(&self, lua: &Lua) -> Error {
        self.0.busy.set(true);
        self.0.clock.end(lua)
    }
}
