//! How equipment fails: a short list of failure modes, with the codes of ISO 14224:2016 (annex B, failure modes of rotating,
//! mechanical and electric equipment, and of instruments); the words are our own.
//!
//! A failure mode is how it shows (it leaks), not why (the seal is worn): that is the cause, in the words of whoever looked.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A failure mode by its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum FailureMode {
    Air,
    Brd,
    Elp,
    Elu,
    Ero,
    Fts,
    Hio,
    Inl,
    Loo,
    Noi,
    Ohe,
    Pde,
    Plu,
    Pow,
    Ser,
    Std,
    Stp,
    Ust,
    Vib,
    Oth,
    Unk,
}

impl FailureMode {
    pub const ALL: [Self; 21] = [
        Self::Air,
        Self::Brd,
        Self::Elp,
        Self::Elu,
        Self::Ero,
        Self::Fts,
        Self::Hio,
        Self::Inl,
        Self::Loo,
        Self::Noi,
        Self::Ohe,
        Self::Pde,
        Self::Plu,
        Self::Pow,
        Self::Ser,
        Self::Std,
        Self::Stp,
        Self::Ust,
        Self::Vib,
        Self::Oth,
        Self::Unk,
    ];

    /// The code, as the database spells it too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Air => "AIR",
            Self::Brd => "BRD",
            Self::Elp => "ELP",
            Self::Elu => "ELU",
            Self::Ero => "ERO",
            Self::Fts => "FTS",
            Self::Hio => "HIO",
            Self::Inl => "INL",
            Self::Loo => "LOO",
            Self::Noi => "NOI",
            Self::Ohe => "OHE",
            Self::Pde => "PDE",
            Self::Plu => "PLU",
            Self::Pow => "POW",
            Self::Ser => "SER",
            Self::Std => "STD",
            Self::Stp => "STP",
            Self::Ust => "UST",
            Self::Vib => "VIB",
            Self::Oth => "OTH",
            Self::Unk => "UNK",
        }
    }

    /// What it means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Air => "An instrument shows something abnormal",
            Self::Brd => "It broke down",
            Self::Elp => "It leaks what it works on",
            Self::Elu => "It leaks what it is run with: oil, coolant, air",
            Self::Ero => "Its output is erratic",
            Self::Fts => "It does not start when it should",
            Self::Hio => "It gives too much",
            Self::Inl => "It leaks inside",
            Self::Loo => "It gives too little",
            Self::Noi => "It makes an abnormal noise",
            Self::Ohe => "It gets too hot",
            Self::Pde => "A value is off its set point",
            Self::Plu => "It is clogged",
            Self::Pow => "It has no power, or too little",
            Self::Ser => "Something small that does not stop it",
            Self::Std => "Its structure is damaged: cracked, worn, corroded",
            Self::Stp => "It does not stop when it should",
            Self::Ust => "It stops by itself when it should not",
            Self::Vib => "It vibrates abnormally",
            Self::Oth => "Something else; the cause says what",
            Self::Unk => "Nobody knows",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_what_is_written_and_no_two_are_alike() {
        let mut codes: Vec<&str> = FailureMode::ALL.into_iter().map(FailureMode::as_str).collect();
        for mode in FailureMode::ALL {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
            assert_eq!(mode.as_str().len(), 3);
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), FailureMode::ALL.len());
    }
}
