-- A calibration may be refused; then the note says why.
ALTER TABLE machines DROP CONSTRAINT machines_detector_check;
ALTER TABLE machines ADD CONSTRAINT machines_detector_check
    CHECK (detector IN ('calibrating', 'watching', 'anomalous', 'blind', 'uncalibrated'));
ALTER TABLE machines ADD COLUMN detector_note text;

-- Seconds until the machine's health is 0 %, if its wear goes on as it did; NULL without a trend. Four times out of five it is
-- between low and high.
ALTER TABLE machines ADD COLUMN remaining_likely_s real;
ALTER TABLE machines ADD COLUMN remaining_low_s real;
ALTER TABLE machines ADD COLUMN remaining_high_s real;
