"""A strongly labelled corpus for people who have none: timeline + sound bank -> audio + labels.

Run:    python soundscapes.py                                     # all built in, about a minute
        python soundscapes.py --bank esc10 --class-map map.tsv --train-timeline train.tsv
Reads:  timelines (DESED TSV, else random), bank `<class>/*.{wav,flac,ogg}` (else synthesised),
        class map TSV `event_label, bank_class`
Writes: <out>/<split>/audio/*.flac (16 kHz mono), <out>/<split>/labels.tsv, <out>/clips.tsv,
        <out>/corpus.json
Shapes: S samples of a recording, n samples of a clip or an event; waves are (S,) or (n,)

Nobody hears the validation fold of the bank in training: a training clip plays recordings of one
bank fold, named in clips.tsv, and a validation clip plays `--validation-fold` only.
"""

from config import SoundscapesConfig
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(SoundscapesConfig)

from scores.corpora import make_corpus


def main(cfg: SoundscapesConfig) -> int:
    """Make the corpus or say that it is there."""
    return make_corpus(cfg)


if __name__ == "__main__":
    run_script(SoundscapesConfig, main)
