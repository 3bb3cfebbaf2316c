"""Where frame scores come from: score files of any SED system, or the built-in trained scorer.

Run:    python scorers.py --preset demo     (one CRNN a bank fold, about a minute on two cores)
        python scorers.py --convert scores/train --out scores/train.npz     (or back into TSVs)
Reads:  <corpus>/clips.tsv, <corpus>/<split>/labels.tsv, <corpus>/<split>/audio
Writes: <corpus>/<split>/scores/<clip id>.tsv (`onset, offset`, a column a class), scorer.json,
        <corpus>/scorer.pt (the network of the validation clips, for detect.py)
Shapes: K classes, T frames; values (K, T) in 0..1, edges (T + 1,) seconds; B clips, S samples

Every clip is scored by a network that never heard its recordings: training clips by the fit on all
other folds, validation clips by one more fit on all training clips.
"""

from config import ScorersConfig
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(ScorersConfig)

from scores.crnn import make_scores
from scores.score_files import convert


def main(cfg: ScorersConfig) -> None:
    """Score every clip of a corpus out of fold, or convert score files from form to form.

    Raises InputError for a corpus or scores that it cannot use.
    """
    if cfg.convert is not None:
        convert(cfg.convert, cfg.out)
    else:
        make_scores(cfg)


if __name__ == "__main__":
    run_script(ScorersConfig, main)
