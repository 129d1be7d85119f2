//! The order of the steps, and the way back from each of them.
//!
//! What the steps are made with is a [`World`]: the real one has processes, sockets and a disk, that of
//! the tests is a model in which everything can fail, and the daemon can die, between any two of them.

/// Between which two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that serves.
    Old,
    /// The one that shall.
    New,
}

/// What the daemon that comes next finds of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// The old one serves, and there is no other.
    Nothing,
    /// The new one is ready, and new connections are about to go to it.
    Flipping,
    /// The new one serves, the old one drains.
    Draining,
}

/// What the steps are made with.
pub trait World: Send {
    /// Why a step was not made.
    type Error: Send;

    /// Puts down how far it is.
    fn note(&mut self, noted: Noted) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Lets this one have whatever comes in, where both listen.
    fn turn(&mut self, to: Side) -> impl Future<Output = ()> + Send;

    /// Starts the new one and waits until it is ready; what no note names is ended by the next daemon.
    fn bring_up(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Reads what the old one has counted.
    fn harvest(&mut self) -> impl Future<Output = ()> + Send;

    /// Makes sure that the new one has what comes in.
    fn check(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Ends the new one at once.
    fn discard(&mut self) -> impl Future<Output = ()> + Send;
}

/// Hands over. After an error the old one serves as before.
///
/// # Errors
/// With the first step that was not made; those before it are undone.
pub async fn hand_over<W: World>(world: &mut W) -> Result<(), W::Error> {
    // Or the new one would get every second connection as soon as it listens, whether it works or not.
    world.turn(Side::Old).await;
    if let Err(error) = world.bring_up().await {
        world.discard().await;
        world.note(Noted::Nothing).await.ok();
        return Err(error);
    }
    world.harvest().await;
    flip(world).await
}

/// Ends what a daemon that died had begun: goes on where the new core `answers`, and back where it does
/// not.
///
/// # Errors
/// When the old one serves on.
pub async fn resume<W: World>(
    world: &mut W,
    answers: Result<(), W::Error>,
) -> Result<(), W::Error> {
    match answers {
        Ok(()) => flip(world).await,
        Err(error) => {
            back(world).await;
            Err(error)
        }
    }
}

async fn flip<W: World>(world: &mut W) -> Result<(), W::Error> {
    let flipped = async {
        world.note(Noted::Flipping).await?;
        world.turn(Side::New).await;
        world.check().await?;
        world.note(Noted::Draining).await
    };
    let flipped = flipped.await;
    if flipped.is_err() {
        back(world).await;
    }
    flipped
}

/// Connections that come in go to the old one before the new one ends, so that none meets nobody.
pub async fn back<W: World>(world: &mut W) {
    world.turn(Side::Old).await;
    world.discard().await;
    world.note(Noted::Nothing).await.ok();
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::{Future, pending};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    const PORTS: usize = 3;

    /// What happens before a step.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Mishap {
        Nothing,
        /// The step fails.
        Fails,
        DaemonDies,
        NewDies,
        NewHangs,
        OldDies,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Core {
        Absent,
        /// Listens, and would serve nobody yet.
        Coming,
        Ready,
        Hung,
    }

    /// What outlives the daemon.
    struct Machine {
        old: Core,
        new: Core,
        /// The place in each group that gets what comes in; the kernel's choice without.
        steered: [Option<u32>; PORTS],
        /// Who has the name of the unix socket.
        shown: Side,
        noted: Noted,
        mishaps: VecDeque<Mishap>,
        /// Connections that were given to a core that was not ready.
        premature: u32,
    }

    impl Machine {
        fn new(mishaps: Vec<Mishap>) -> Self {
            Self {
                old: Core::Ready,
                new: Core::Absent,
                steered: [None; PORTS],
                shown: Side::Old,
                noted: Noted::Nothing,
                mishaps: mishaps.into(),
                premature: 0,
            }
        }

        /// Somebody connects to each port.
        fn connect(&mut self) {
            for port in 0..PORTS {
                let places: Vec<Core> = [self.old, self.new]
                    .into_iter()
                    .filter(|core| *core != Core::Absent)
                    .collect();
                let place = self.steered[port].and_then(|place| places.get(place as usize));
                // Where nobody steers, anybody may get it.
                let takers: Vec<Core> = place.map_or(places.clone(), |core| vec![*core]);
                if takers.contains(&Core::Coming) && self.old == Core::Ready {
                    self.premature += 1;
                }
            }
        }

        fn takes(&self, port: usize) -> Side {
            match (self.old, self.new, self.steered[port]) {
                (Core::Absent, _, _) => Side::New,
                (_, Core::Absent, _) | (_, _, Some(0)) => Side::Old,
                (_, _, Some(1)) => Side::New,
                other => panic!("nobody steers: {other:?}"),
            }
        }

        /// One moment between two steps; whether the step can be made.
        async fn moment(&mut self) -> bool {
            let mishap = self.mishaps.pop_front().unwrap_or(Mishap::Nothing);
            match mishap {
                Mishap::DaemonDies => pending().await,
                Mishap::NewDies if self.new != Core::Absent => {
                    self.new = Core::Absent;
                }
                Mishap::NewHangs if self.new == Core::Ready => self.new = Core::Hung,
                Mishap::OldDies => self.old = Core::Absent,
                _ => {}
            }
            self.connect();
            mishap != Mishap::Fails
        }
    }

    impl World for Machine {
        type Error = &'static str;

        async fn note(&mut self, noted: Noted) -> Result<(), &'static str> {
            if !self.moment().await {
                return Err("the disk is full");
            }
            self.noted = noted;
            Ok(())
        }

        async fn turn(&mut self, to: Side) {
            for port in 0..PORTS {
                self.moment().await;
                self.steered[port] = Some(u32::from(to == Side::New && self.old != Core::Absent));
            }
            self.moment().await;
            if self.new != Core::Absent || to == Side::Old {
                self.shown = to;
            }
        }

        async fn bring_up(&mut self) -> Result<(), &'static str> {
            self.new = Core::Coming;
            if !self.moment().await || self.new == Core::Absent {
                return Err("the port is taken");
            }
            self.new = Core::Ready;
            Ok(())
        }

        async fn harvest(&mut self) {
            self.moment().await;
        }

        async fn check(&mut self) -> Result<(), &'static str> {
            if !self.moment().await || self.new != Core::Ready {
                return Err("it takes nothing");
            }
            Ok(())
        }

        async fn discard(&mut self) {
            self.moment().await;
            self.new = Core::Absent;
        }
    }

    /// `None` when the daemon died.
    fn run<T>(task: impl Future<Output = T>) -> Option<T> {
        match pin!(task).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    /// What a daemon does that comes after one that died.
    async fn newborn(machine: &mut Machine) -> Result<(), &'static str> {
        match machine.noted {
            // A core that no note names.
            Noted::Nothing => {
                machine.new = Core::Absent;
                Err("not begun")
            }
            Noted::Flipping => {
                let answers = match machine.new {
                    Core::Ready => Ok(()),
                    _ => Err("it does not answer"),
                };
                resume(machine, answers).await
            }
            Noted::Draining => Ok(()),
        }
    }

    fn mishap() -> impl Strategy<Value = Mishap> {
        prop_oneof![
            12 => Just(Mishap::Nothing),
            2 => Just(Mishap::Fails),
            2 => Just(Mishap::DaemonDies),
            1 => Just(Mishap::NewDies),
            1 => Just(Mishap::NewHangs),
            1 => Just(Mishap::OldDies),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn whatever_fails_one_of_them_has_everything(mishaps in proptest::collection::vec(mishap(), 0..30)) {
            let mut machine = Machine::new(mishaps);
            let mut done = run(hand_over(&mut machine));
            let mut deaths = 0;
            while done.is_none() {
                deaths += 1;
                prop_assert!(deaths < 40);
                done = run(newborn(&mut machine));
            }
            prop_assert_eq!(machine.premature, 0, "nobody meets a core that is not ready");
            if done.unwrap().is_ok() {
                prop_assert_eq!(machine.noted, Noted::Draining);
                // One that died at the last moment leaves the old one with everything, if there is one.
                if machine.new != Core::Absent {
                    for port in 0..PORTS {
                        prop_assert_eq!(machine.takes(port), Side::New);
                    }
                    prop_assert_eq!(machine.shown, Side::New);
                }
            } else {
                prop_assert_eq!(machine.new, Core::Absent, "nothing is left of it");
                prop_assert_eq!(machine.shown, Side::Old);
                if machine.old != Core::Absent {
                    for port in 0..PORTS {
                        prop_assert_eq!(machine.takes(port), Side::Old);
                    }
                }
            }
        }
    }

    #[test]
    fn without_a_mishap_it_is_done() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(run(hand_over(&mut machine)), Some(Ok(())));
        assert!((0..PORTS).all(|port| machine.takes(port) == Side::New));
    }
}
