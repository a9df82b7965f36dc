"""Masking of personal data against its peers, on made text: recall, false positives, speed.

    python -m tests.bench.pii --peers_python=PYTHON --datatrove_python=PYTHON [--texts=2000]
      [--rounds=5]

Each text is prose with one item of each kind, written as people write it, and one look-alike of
each, which is nothing personal: private addresses, versions, dates, ISBNs, order numbers and bank
accounts with wrong check digits, hashes, coordinates. An item counts as found when it no longer
stands in the text, whatever it was taken for; a look-alike that no longer stands there is a false
positive. Peers are used with what finds these kinds by form (no language models): scrubadub's
default detectors, commonregex's e-mail, phone, card and IP patterns, presidio's recognisers of
these kinds, datatrove's formatter, which has e-mail and IP alone. Rates are by processor time.
"""

import argparse
import collections
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import Worker, alternate, serve, summary
from tests.unit.web_archives import prose

PEERS = ("scrubadub", "commonregex", "presidio", "datatrove")
KINDS = ("email", "phone", "card", "iban", "ssn", "ip")


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _luhn_rest(digits: str) -> int:
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(digits[::-1])]
    return -sum(sum(divmod(d, 10)) for d in doubled) % 10


def _card(rng: random.Random, *, is_right: bool) -> str:
    start = rng.choice(["4", "51", "55"])
    digits = start + _digits(rng, 15 - len(start))
    digits += str((_luhn_rest(digits) + (0 if is_right else rng.randint(1, 9))) % 10)
    sign = rng.choice(["", " ", "-"])
    return sign.join(digits[place : place + 4] for place in range(0, 16, 4))


def _iban(rng: random.Random, *, is_right: bool) -> str:
    country, size = rng.choice([("DE", 18), ("FR", 23), ("ES", 20)])
    account = _digits(rng, size)
    rest = int("".join(str(int(c, 36)) for c in f"{account}{country}00")) % 97
    check = 98 - rest if is_right else (98 - rest) % 97 + 1
    whole = f"{country}{check:02d}{account}"
    if rng.random() < 0.5:
        return whole
    return " ".join(whole[place : place + 4] for place in range(0, len(whole), 4))


def _item(rng: random.Random, kind: str) -> str:
    area, exchange = (f"{rng.randint(2, 9)}{rng.randint(10, 99)}" for _ in range(2))
    line = _digits(rng, 4)
    if kind == "email":
        name = rng.choice(["j.smith", "anna_k", "info+web", "o-neill42"]) + _digits(rng, 2)
        host = rng.choice(["example.com", "mail.uni-graz.at", "x1.co.uk", "firm.museum"])
        return f"{name}@{host}"
    if kind == "phone":
        return rng.choice(
            [
                f"({area}) {exchange}-{line}",
                f"{area}-{exchange}-{line}",
                f"{area}.{exchange}.{line}",
                f"1-{area}-{exchange}-{line}",
                f"+1 {area} {exchange} {line}",
                f"+44 20 7{_digits(rng, 3)} {line}",
                f"+49 30 {_digits(rng, 8)}",
                f"+33 1 {' '.join(_digits(rng, 2) for _ in range(4))}",
            ]
        )
    if kind == "ssn":
        return f"{rng.randint(1, 665):03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"
    if kind == "ip":
        if rng.random() < 0.2:
            return f"2001:4860:{_digits(rng, 4)}::{rng.randint(1000, 9999)}"
        rest = (str(rng.randint(1, 254)) for _ in range(3))
        return ".".join([rng.choice(["8", "23", "52", "93", "151"]), *rest])
    return _card(rng, is_right=True) if kind == "card" else _iban(rng, is_right=True)


def _look_alike(rng: random.Random, kind: str) -> str:
    year, number = rng.randint(1950, 2029), rng.randint(100, 999)
    if kind == "email":
        return rng.choice([f"@user{number}", f"root@host{number}", f"price@{number}", "a @ b.c"])
    if kind == "phone":
        return rng.choice(
            [
                f"{year}-{rng.randint(10, 12)}-{rng.randint(10, 28)}",
                f"{year}-{year + 1}",
                f"978-3-16-{_digits(rng, 6)}-{rng.randint(0, 9)}",
                f"40.{_digits(rng, 4)}, -74.{_digits(rng, 4)}",
                f"{number},{_digits(rng, 3)},{_digits(rng, 3)}",
                f"+{number}.{_digits(rng, 5)}",
            ]
        )
    if kind == "ssn":
        return rng.choice([f"000-{_digits(rng, 2)}-{line}" for line in ["1234", "9876"]])
    if kind == "ip":
        return rng.choice(
            [
                f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
                f"192.168.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
                f"version {rng.randint(1, 20)}.{rng.randint(0, 30)}.{rng.randint(300, 999)}.1",
                f"section {rng.randint(1, 9)}.{rng.randint(1, 9)}.{rng.randint(1, 9)}",
                f"at {rng.randint(10, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)}",
            ]
        )
    if kind == "card":
        return rng.choice([_card(rng, is_right=False), f"{rng.getrandbits(64):016x}"])
    return _iban(rng, is_right=False)


def make_texts(num_texts: int, seed: int) -> list[dict]:
    """Returns texts with the items and look-alikes planted in them, as (kind, string)."""
    rng = random.Random(seed)
    made = []
    for number in range(num_texts):
        words = " ".join(prose(seed + number, num_paragraphs=2)).split()
        planted = [(kind, _item(rng, kind)) for kind in KINDS]
        alike = [(kind, _look_alike(rng, kind)) for kind in KINDS]
        places = sorted(rng.sample(range(1, len(words)), len(planted) + len(alike)), reverse=True)
        both = [string for _, string in planted + alike]
        rng.shuffle(both)
        for place, string in zip(places, both, strict=True):
            words.insert(place, string + rng.choice(["", "", ",", "."]))
        made.append({"text": " ".join(words), "planted": planted, "alike": alike})
    return made


def _masker(name: str) -> Callable[[str], str]:
    if name == "ours":
        from t5x_style.corpus.wanjuan_cc.pii import MaskSettings, mask

        settings = MaskSettings()
        return lambda text: mask(text, settings).text
    if name == "scrubadub":
        import scrubadub

        return scrubadub.Scrubber().clean
    if name == "commonregex":
        import commonregex

        patterns = [getattr(commonregex, kind) for kind in ("email", "phone", "credit_card")]
        patterns += [commonregex.ip, commonregex.ipv6]

        def mask_by_patterns(text: str) -> str:
            for pattern in patterns:
                text = pattern.sub("*", text)
            return text

        return mask_by_patterns
    if name == "datatrove":
        from datatrove.pipeline.formatters import PIIFormatter

        return PIIFormatter(email_replacement="*", ip_replacement="*").format
    from presidio_analyzer import predefined_recognizers as known

    recognizers = [
        (recognizer, recognizer.supported_entities)
        for recognizer in (
            known.EmailRecognizer(),
            known.PhoneRecognizer(),
            known.CreditCardRecognizer(),
            known.IbanRecognizer(),
            known.UsSsnRecognizer(),
            known.IpRecognizer(),
        )
    ]

    def mask_by_recognizers(text: str) -> str:
        spans = [
            (result.start, result.end)
            for recognizer, entities in recognizers
            for result in recognizer.analyze(text, entities, None)
        ]
        for start, end in sorted(spans, reverse=True):
            text = text[:start] + "*" * (end - start) + text[end:]
        return text

    return mask_by_recognizers


def _serve(name: str, path: str) -> None:
    texts = json.loads(Path(path).read_text())
    mask = _masker(name)

    def answer(request: dict) -> dict:
        masked = [mask(text) for text in texts]
        return {"texts": masked} if request.get("texts") else {}

    serve(answer)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers_python")
    parser.add_argument("--datatrove_python")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(*flags.serve)
        return
    made = make_texts(flags.texts, flags.seed)
    num_bytes = sum(len(case["text"]) for case in made)
    print(f"{len(made)} texts, {num_bytes / 1e6:.1f} MB; share found | share of look-alikes masked")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "texts.json")
        Path(path).write_text(json.dumps([case["text"] for case in made]))
        workers = {"ours": Worker([sys.executable, __file__, "--serve", "ours", path], 1)}
        for name in PEERS:
            python = flags.datatrove_python if name == "datatrove" else flags.peers_python
            if python:
                workers[name] = Worker([python, __file__, "--serve", name, path], 1)
        answers = alternate(workers, {}, rounds=flags.rounds, warmups=1)
        ours = summary(answers["ours"])["cpu"]
        heads = " ".join(f"{kind:>11}" for kind in KINDS)
        print(f"{'':12} {heads}   texts/s/core  ours is")
        for name, worker in workers.items():
            masked = worker.ask({"texts": True})["texts"]
            gone: dict[str, collections.Counter] = {
                what: collections.Counter(
                    kind
                    for case, text in zip(made, masked, strict=True)
                    for kind, string in case[what]
                    if string not in text
                )
                for what in ("planted", "alike")
            }
            cells = " ".join(
                f"{gone['planted'][kind] / len(made):5.3f}|{gone['alike'][kind] / len(made):5.3f}"
                for kind in KINDS
            )
            secs = summary(answers[name])["cpu"]
            print(f"{name:12} {cells} {len(made) / secs:14.0f} {secs / ours:7.2f}x", flush=True)
            worker.close()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
