//! The states of an alarm and the changes between them, after ISA-18.2 (ANSI/ISA-18.2-2016, figure 3) and OPC UA Part 9
//! (5.8, `ShelvedStateMachine`).
//!
//! Two things stand beside each other: the state of the *condition* (is it there, was it seen), and what *holds* the alarm
//! back from people. The condition comes and goes while an alarm is held; when the hold ends, the alarm is what its condition
//! says: active ones are announced anew, as ISA-18.2 asks, and what was over meanwhile is history.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where an alarm's condition is in its life, whether people are told of it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConditionState {
    /// Active, and nobody has said that they saw it.
    Unacknowledged,
    /// Active and seen.
    Acknowledged,
    /// Over before anybody saw it.
    ReturnedUnacknowledged,
    /// Over; history.
    Normal,
}

impl ConditionState {
    pub const ALL: [Self; 4] = [Self::Unacknowledged, Self::Acknowledged, Self::ReturnedUnacknowledged, Self::Normal];

    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unacknowledged => "unacknowledged",
            Self::Acknowledged => "acknowledged",
            Self::ReturnedUnacknowledged => "returned_unacknowledged",
            Self::Normal => "normal",
        }
    }

    /// Whether the condition is there.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Unacknowledged | Self::Acknowledged)
    }
}

/// The state that people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlarmState {
    /// Active, and nobody has said that they saw it.
    Unacknowledged,
    /// Active and seen.
    Acknowledged,
    /// Over before anybody saw it.
    ReturnedUnacknowledged,
    /// Put aside by a person, for a time that ends by itself.
    Shelved,
    /// Held back by design: planned maintenance.
    Suppressed,
    /// Held back until the machine or its sensor is put right.
    OutOfService,
    /// Over; history.
    Normal,
}

impl AlarmState {
    /// As it is spelled.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unacknowledged => "unacknowledged",
            Self::Acknowledged => "acknowledged",
            Self::ReturnedUnacknowledged => "returned_unacknowledged",
            Self::Shelved => "shelved",
            Self::Suppressed => "suppressed",
            Self::OutOfService => "out_of_service",
            Self::Normal => "normal",
        }
    }
}

/// What holds an alarm back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    Shelved,
    Suppressed,
    OutOfService,
}

impl Hold {
    pub const ALL: [Self; 3] = [Self::Shelved, Self::Suppressed, Self::OutOfService];

    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shelved => "shelved",
            Self::Suppressed => "suppressed",
            Self::OutOfService => "out_of_service",
        }
    }
}

/// The holds that are in effect; several may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Holds(u8);

impl Holds {
    pub const NONE: Self = Self(0);

    #[must_use]
    pub const fn of(hold: Hold) -> Self {
        Self(1 << hold as u8)
    }

    #[must_use]
    pub const fn with(self, hold: Hold) -> Self {
        Self(self.0 | Self::of(hold).0)
    }

    #[must_use]
    pub const fn without(self, hold: Hold) -> Self {
        Self(self.0 & !Self::of(hold).0)
    }

    #[must_use]
    pub const fn has(self, hold: Hold) -> bool {
        self.0 & Self::of(hold).0 != 0
    }

    #[must_use]
    pub const fn any(self) -> bool {
        self.0 != 0
    }
}

/// What happens to an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The condition is there (again).
    Raise,
    /// The condition is over.
    Return,
    Acknowledge,
    /// A person shelves it, maintenance begins, it is taken out of service.
    Place(Hold),
    /// The time is over, or a person ends it.
    Release(Hold),
}

/// Why a change is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    #[error("the alarm is over: nothing is left to do")]
    Over,
    #[error("the alarm is held back: end that first")]
    Held,
    #[error("the alarm is held back in this way already")]
    AlreadyHeld,
    #[error("the alarm is not held back in this way")]
    NotHeld,
}

/// Where an alarm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    pub condition: ConditionState,
    pub holds: Holds,
}

impl Standing {
    /// The state that people see: history is history, and of several holds the one that lasts longest is named.
    #[must_use]
    pub const fn shown(self) -> AlarmState {
        let Self { condition, holds } = self;
        match condition {
            ConditionState::Normal => AlarmState::Normal,
            _ if holds.has(Hold::OutOfService) => AlarmState::OutOfService,
            _ if holds.has(Hold::Suppressed) => AlarmState::Suppressed,
            _ if holds.has(Hold::Shelved) => AlarmState::Shelved,
            ConditionState::Unacknowledged => AlarmState::Unacknowledged,
            ConditionState::Acknowledged => AlarmState::Acknowledged,
            ConditionState::ReturnedUnacknowledged => AlarmState::ReturnedUnacknowledged,
        }
    }

    /// Where it stands after an action.
    ///
    /// # Errors
    /// If the action is not allowed; nothing changes then.
    pub const fn after(self, action: Action) -> Result<Self, Refused> {
        use ConditionState::{Acknowledged, Normal, ReturnedUnacknowledged, Unacknowledged};
        let Self { condition, holds } = self;
        Ok(match action {
            Action::Raise => match condition {
                Normal | ReturnedUnacknowledged => Self { condition: Unacknowledged, holds },
                Unacknowledged | Acknowledged => self,
            },
            Action::Return => match condition {
                // Nobody was told: nobody need say that they saw it.
                Unacknowledged if holds.any() => Self { condition: Normal, holds },
                Unacknowledged => Self { condition: ReturnedUnacknowledged, holds },
                Acknowledged => Self { condition: Normal, holds },
                ReturnedUnacknowledged | Normal => self,
            },
            Action::Acknowledge => match condition {
                Normal => return Err(Refused::Over),
                _ if holds.any() => return Err(Refused::Held),
                Unacknowledged | Acknowledged => Self { condition: Acknowledged, holds },
                ReturnedUnacknowledged => Self { condition: Normal, holds },
            },
            Action::Place(hold) if holds.has(hold) => return Err(Refused::AlreadyHeld),
            Action::Place(hold) => match condition {
                Normal if matches!(hold, Hold::Shelved) => return Err(Refused::Over),
                // It will have to be seen anew when the hold ends, if it is still there then.
                Unacknowledged | Acknowledged => Self { condition: Unacknowledged, holds: holds.with(hold) },
                ReturnedUnacknowledged | Normal => Self { condition: Normal, holds: holds.with(hold) },
            },
            Action::Release(hold) if !holds.has(hold) => return Err(Refused::NotHeld),
            Action::Release(hold) => Self { condition, holds: holds.without(hold) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state that people can see, as it comes about.
    const SHOWN: [(&str, ConditionState, Option<Hold>); 10] = [
        ("unack", ConditionState::Unacknowledged, None),
        ("ack", ConditionState::Acknowledged, None),
        ("returned", ConditionState::ReturnedUnacknowledged, None),
        ("normal", ConditionState::Normal, None),
        ("shelved", ConditionState::Unacknowledged, Some(Hold::Shelved)),
        ("shelved over", ConditionState::Normal, Some(Hold::Shelved)),
        ("suppressed", ConditionState::Unacknowledged, Some(Hold::Suppressed)),
        ("suppressed over", ConditionState::Normal, Some(Hold::Suppressed)),
        ("out", ConditionState::Unacknowledged, Some(Hold::OutOfService)),
        ("out over", ConditionState::Normal, Some(Hold::OutOfService)),
    ];
    const ACTIONS: [Action; 9] = [
        Action::Raise,
        Action::Return,
        Action::Acknowledge,
        Action::Place(Hold::Shelved),
        Action::Release(Hold::Shelved),
        Action::Place(Hold::Suppressed),
        Action::Release(Hold::Suppressed),
        Action::Place(Hold::OutOfService),
        Action::Release(Hold::OutOfService),
    ];

    fn standing(condition: ConditionState, hold: Option<Hold>) -> Standing {
        Standing { condition, holds: hold.map_or(Holds::NONE, Holds::of) }
    }

    /// The condition, and the holds by their first letters.
    fn short(result: Result<Standing, Refused>) -> String {
        match result {
            Ok(Standing { condition, holds }) => {
                let word = match condition {
                    ConditionState::Unacknowledged => "unack",
                    ConditionState::Acknowledged => "ack",
                    ConditionState::ReturnedUnacknowledged => "ret",
                    ConditionState::Normal => "norm",
                };
                let held: String = Hold::ALL
                    .iter()
                    .filter(|hold| holds.has(**hold))
                    .map(|hold| match hold {
                        Hold::Shelved => 's',
                        Hold::Suppressed => 'd',
                        Hold::OutOfService => 'o',
                    })
                    .collect();
                if held.is_empty() { word.into() } else { format!("{word}+{held}") }
            }
            Err(Refused::Over) => "!over".into(),
            Err(Refused::Held) => "!held".into(),
            Err(Refused::AlreadyHeld) => "!already".into(),
            Err(Refused::NotHeld) => "!not".into(),
        }
    }

    #[test]
    fn the_whole_table_of_states_and_actions() {
        let mut table = String::from(
            "                 raise     return    ack       shelve    unshelve  suppress  unsuppr.  take out  put back\n",
        );
        for (name, condition, hold) in SHOWN {
            let row = ACTIONS.map(|action| format!("{:<10}", short(standing(condition, hold).after(action))));
            table.push_str(format!("{name:<17}{}", row.concat()).trim_end());
            table.push('\n');
        }
        expect_test::expect![[r"
                             raise     return    ack       shelve    unshelve  suppress  unsuppr.  take out  put back
            unack            unack     ret       ack       unack+s   !not      unack+d   !not      unack+o   !not
            ack              ack       norm      ack       unack+s   !not      unack+d   !not      unack+o   !not
            returned         unack     ret       norm      norm+s    !not      norm+d    !not      norm+o    !not
            normal           unack     norm      !over     !over     !not      norm+d    !not      norm+o    !not
            shelved          unack+s   norm+s    !held     !already  unack     unack+sd  !not      unack+so  !not
            shelved over     unack+s   norm+s    !over     !already  norm      norm+sd   !not      norm+so   !not
            suppressed       unack+d   norm+d    !held     unack+sd  !not      !already  unack     unack+do  !not
            suppressed over  unack+d   norm+d    !over     !over     !not      !already  norm      norm+do   !not
            out              unack+o   norm+o    !held     unack+so  !not      unack+do  !not      !already  unack
            out over         unack+o   norm+o    !over     !over     !not      norm+do   !not      !already  norm
        "]]
        .assert_eq(&table);
    }

    #[test]
    fn no_sequence_of_actions_loses_an_alarm_or_shows_one_that_is_held() {
        // Every standing that can be reached from the beginning.
        let mut reached = vec![Standing { condition: ConditionState::Normal, holds: Holds::NONE }];
        let mut next = 0;
        while next < reached.len() {
            let from = reached[next];
            next += 1;
            for action in ACTIONS {
                let Ok(to) = from.after(action) else { continue };
                if matches!(action, Action::Release(_)) {
                    assert_eq!(to.condition, from.condition, "{from:?} {action:?}");
                }
                if action != Action::Return {
                    let lost = from.condition.is_active() && !to.condition.is_active();
                    assert!(!lost, "{from:?} {action:?}");
                }
                if !reached.contains(&to) {
                    reached.push(to);
                }
            }
        }
        // 4 without a hold, and 2 with each of the 7 sets of holds.
        assert_eq!(reached.len(), 4 + 2 * 7);
        for standing in reached {
            let held =
                matches!(standing.shown(), AlarmState::Shelved | AlarmState::Suppressed | AlarmState::OutOfService);
            assert_eq!(held, standing.holds.any() && standing.condition != ConditionState::Normal, "{standing:?}");
        }
    }
}
