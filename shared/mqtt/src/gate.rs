//! The run loop of the gate: accepts clients, authenticates them, and stands between them and the broker.
