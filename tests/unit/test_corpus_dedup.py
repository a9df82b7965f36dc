"""Near-duplicates against exact Jaccard similarity of all pairs, and what must not matter."""

import dataclasses
import itertools
import random
import re

import numpy as np
import pytest

from t5x_style.corpus.wanjuan_cc import jaccard
from t5x_style.corpus.wanjuan_cc.dedup import (
    DedupSettings,
    are_alike,
    bucket_pairs,
    candidate_pairs,
    find_duplicates,
    minhash_signatures,
    shared_keys,
    shingle_hashes,
)
from t5x_style.corpus.wanjuan_cc.jaccard import jaccard_of_pairs

SETTINGS = DedupSettings()
WORDS = [f"word{i}" for i in range(3000)]


def text_of(rng, num_words):
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def edited(rng, text, share):
    """Replaces a share of the words, in runs, which leaves more shingles whole."""
    words = text.split()
    left = round(share * len(words))
    while left > 0:
        size = min(left, rng.randint(1, 12))
        start = rng.randrange(len(words) - size)
        words[start : start + size] = [rng.choice(WORDS) for _ in range(size)]
        left -= size
    return " ".join(words)


def planted(seed, num_groups=90):
    """Texts with copies at all degrees of likeness, in random order."""
    rng = random.Random(seed)
    texts = []
    for _ in range(num_groups):
        source = text_of(rng, rng.randint(60, 400))
        texts.append(source)
        texts += [edited(rng, source, rng.uniform(0.0, 0.25)) for _ in range(rng.randint(0, 4))]
    rng.shuffle(texts)
    return texts


def shingles_of(text, n=5):
    words = re.findall(r"\w+", text.lower())
    if 0 < len(words) < n:
        return {tuple(words)}
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def exact_pairs(texts, least):
    sets = [shingles_of(text) for text in texts]
    return {
        (i, j)
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if sets[i] and len(sets[i] & sets[j]) >= least * len(sets[i] | sets[j])
    }


def find(texts, ids=None, priorities=None, settings=SETTINGS):
    def some(numbers):
        return texts if numbers is None else [texts[number] for number in numbers]

    ids = ids or [f"{i:05d}" for i in range(len(texts))]
    return find_duplicates(ids, priorities or [("", "")] * len(texts), some, settings)


@pytest.fixture(scope="module")
def texts():
    return planted(11)


def test_pairs_found_are_those_of_exact_similarity(texts):
    signatures = minhash_signatures(texts, SETTINGS)
    pairs = candidate_pairs(signatures, SETTINGS)
    shingles, bounds = shingle_hashes(texts, SETTINGS)
    sets = [np.unique(shingles[s:e]) for s, e in itertools.pairwise(bounds)]
    verified = pairs[jaccard_of_pairs(sets, pairs) >= 0.7]
    truth, found = exact_pairs(texts, 0.7), set(map(tuple, verified.tolist()))
    assert len(truth) > 70
    assert found <= truth  # verification: no pair that is not one
    assert len(found) >= 0.995 * len(truth)


def test_documents_that_stay_have_no_near_duplicate_left(texts):
    goes = find(texts)
    stays = [text for text, out in zip(texts, goes.exact | goes.near, strict=True) if not out]
    assert exact_pairs(stays, 0.7) == set()
    # Nothing unlike all others goes.
    lonely = set(range(len(texts))) - {i for pair in exact_pairs(texts, 0.7) for i in pair}
    assert lonely
    assert not (goes.exact | goes.near)[sorted(lonely)].any()


def test_agreement_of_signatures_estimates_similarity_without_bias(texts):
    """Too few bits of a hash, or factors of half its width, show as agreement by chance."""
    signatures = minhash_signatures(texts, SETTINGS)
    sets = [shingles_of(text) for text in texts]
    pairs = [(i, j) for i, j in exact_pairs(texts, 0.02)]
    errors = [
        (signatures[i] == signatures[j]).mean() - len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i, j in pairs
    ]
    assert len(errors) > 100
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.06  # sqrt(0.25 / 128) = 0.044 at most
    unlike = minhash_signatures([text_of(random.Random(s), 300) for s in range(60)], SETTINGS)
    chance = [(unlike[i] == unlike[j]).mean() for i in range(60) for j in range(i)]
    assert np.mean(chance) < 0.001


def test_bands_find_pairs_as_often_as_the_s_curve_says():
    """A pair at Jaccard J agrees in some of b bands of r rows with 1 - (1 - J^r)^b."""
    rng = random.Random(21)
    settings = dataclasses.replace(SETTINGS, bands=16, rows=8, min_jaccard=0.0)
    for num_apart in (4, 12, 24):
        texts, likenesses = [], []
        for _ in range(200):
            source = text_of(rng, 200).split()
            other = list(source)
            for place in range(5, 5 + 8 * num_apart, 8):  # far apart: five shingles each
                other[place] = "other"
            texts += [" ".join(source), " ".join(other)]
            first, second = (shingles_of(text) for text in texts[-2:])
            likenesses.append(len(first & second) / len(first | second))
        pairs = candidate_pairs(minhash_signatures(texts, settings), settings)
        found = sum(second == first + 1 and first % 2 == 0 for first, second in pairs.tolist())
        chances = 1 - (1 - np.array(likenesses) ** 8) ** 16
        spread = np.sqrt((chances * (1 - chances)).sum())
        assert abs(found - chances.sum()) < 4 * spread + 1


def test_pairs_that_cannot_be_alike_are_no_candidates(texts):
    loose = dataclasses.replace(SETTINGS, min_jaccard=0.0)
    signatures = minhash_signatures(texts, SETTINGS)
    every = set(map(tuple, candidate_pairs(signatures, loose).tolist()))
    likely = set(map(tuple, candidate_pairs(signatures, SETTINGS).tolist()))
    assert likely < every
    assert not (every - likely) & exact_pairs(texts, 0.7)


def test_signatures_do_not_depend_on_the_batch(texts):
    together = minhash_signatures(texts, SETTINGS)
    alone = np.concatenate([minhash_signatures([text], SETTINGS) for text in texts])
    np.testing.assert_array_equal(together, alone)
    backwards = minhash_signatures(texts[::-1], SETTINGS)[::-1]
    np.testing.assert_array_equal(together, backwards)


def survivors(texts, ids, order, settings=SETTINGS):
    goes = find([texts[i] for i in order], [ids[i] for i in order], settings=settings)
    out = goes.exact | goes.near
    return {ids[i] for i, is_out in zip(order, out, strict=True) if not is_out}


def test_who_stays_does_not_depend_on_the_order_of_documents(texts):
    ids = [f"{i * 7919 % 10007:05d}" for i in range(len(texts))]
    forwards = survivors(texts, ids, range(len(texts)))
    assert survivors(texts, ids, random.Random(1).sample(range(len(texts)), len(texts))) == forwards


def test_the_order_does_not_matter_in_large_buckets_either():
    """Where not all pairs are compared, which ones are must follow from the documents."""
    rng = random.Random(3)
    common = text_of(rng, 200)
    # Alike at 0.5 between families, at 0.9 within: neighbours in a bucket may be of either kind.
    families = [common + " " + text_of(rng, 100) for _ in range(8)]
    texts = [edited(rng, family, 0.02) for family in families for _ in range(5)]
    ids = [f"{rng.random():.6f}" for _ in texts]
    settings = dataclasses.replace(SETTINGS, bands=1, rows=1, max_bucket_documents=2)
    orders = [rng.sample(range(len(texts)), len(texts)) for _ in range(6)]
    found = [survivors(texts, ids, order, settings) for order in orders]
    assert all(one == found[0] for one in found)


def test_short_texts_have_one_shingle_and_empty_ones_none():
    texts = ["", "one", "one two three", "One, two: three!", "...", "a b c d e", "a b c d e f"]
    shingles, bounds = shingle_hashes(texts, SETTINGS)
    assert np.diff(bounds).tolist() == [0, 1, 1, 1, 0, 1, 2]
    assert shingles[bounds[2]] == shingles[bounds[3]]
    assert len(np.unique(shingles)) == 4
    goes = find(texts)
    assert goes.exact.tolist() == [False, False, False, True, True, False, False]


def test_case_and_punctuation_make_no_difference_but_letters_of_any_script_do():
    base = text_of(random.Random(5), 80)
    loud = base.upper().replace(" ", ", ")
    loud = f"\u201c{loud}\u201d!"
    texts = [base, loud, "слово " * 30 + "раз", "слово " * 30 + "два", base + " новое слово"]
    goes = find(texts)
    assert goes.exact.tolist() == [False, True, False, False, False]
    assert goes.near[4]


@pytest.mark.parametrize(
    "pair",
    [
        ("ΟΔΥΣΣΕΥΣ ΚΑΙ ΚΙΡΚΗ", "οδυσσευς και κιρκη"),
        ("ÉTÉ À LA MER", "été; à la mer"),
        ("\U00010400 one", "\U00010428 one"),  # Deseret
        ("\U00020000 \U0001f600 two", "\U00020000\u2014two"),  # an ideograph, a face
    ],
)
def test_letters_of_all_planes_lose_their_case_and_signs_part_words(pair):
    one, other = (shingle_hashes([text + " and more words"], SETTINGS)[0] for text in pair)
    np.testing.assert_array_equal(one, other)
    assert shingle_hashes(["\ud800 a b c d e"], SETTINGS)[1][1] == 1


def test_the_newest_copy_stays_then_the_lowest_id():
    rng = random.Random(2)
    base = text_of(rng, 200)
    copies = [base, edited(rng, base, 0.02), edited(rng, base, 0.02), base]
    priorities = [
        ("CC-2020-05", "2020-01-02"),
        ("CC-2023-50", "2019-01-01"),  # the dump counts before the date
        ("CC-2023-50", "2018-01-01"),
        ("CC-2020-05", "2020-01-02"),
    ]
    goes = find(copies, ["d", "c", "b", "a"], priorities)
    assert (goes.exact | goes.near).tolist() == [True, False, True, True]
    assert goes.exact.tolist() == [True, False, False, False]
    assert goes.num_clusters == 1
    tie = find([base, base], ["b", "a"])
    assert tie.exact.tolist() == [True, False]


def test_chains_of_pairs_are_one_cluster():
    words = text_of(random.Random(4), 400).split()
    # Each shares 85% of its words with the next, so about 0.73 of the union of shingles.
    chain = [" ".join(words[shift : shift + 200]) for shift in range(0, 200, 28)]
    goes = find(chain)
    assert goes.near.sum() == len(chain) - 1
    assert goes.num_clusters == 1
    assert (0, len(chain) - 1) not in exact_pairs(chain, 0.1)


def test_a_large_bucket_is_not_compared_pair_by_pair():
    rng = random.Random(8)
    base = text_of(rng, 150)
    copies = [base + f" number{i}" for i in range(400)]
    settings = dataclasses.replace(SETTINGS, max_bucket_documents=16)
    pairs = candidate_pairs(minhash_signatures(copies, settings), settings)
    assert len(pairs) < 25 * 2 * 400
    assert find(copies, settings=settings).near.sum() == 399


@pytest.mark.parametrize("max_all", [0, 2, 3, 50])
def test_keys_that_others_have_are_paired_within_their_bucket(max_all):
    rng = np.random.default_rng(3)
    for num_keys, num_values in ((0, 1), (1, 1), (7, 1), (300, 60), (300, 4000)):
        keys = rng.integers(0, num_values, num_keys).astype(np.uint64) << np.uint64(40)
        members, buckets = shared_keys(keys)
        first, second = members[bucket_pairs(buckets, max_all)]
        found = list(zip(first.tolist(), second.tolist(), strict=True))
        wanted = []
        for key in set(keys.tolist()):
            places = np.flatnonzero(keys == key).tolist()
            if len(places) <= max_all:
                wanted += itertools.combinations(places, 2)
            else:
                wanted += [(places[0], place) for place in places[1:]]
                wanted += itertools.pairwise(places[1:])
        assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("values_per_block", [1, 500, 1 << 16])
def test_similarity_of_pairs_is_that_of_sets_whatever_is_looked_at_together(
    values_per_block, monkeypatch
):
    monkeypatch.setattr(jaccard, "_VALUES_PER_BLOCK", values_per_block)
    monkeypatch.setattr(jaccard, "_PAIRS_PER_PRODUCT", 7)
    rng = np.random.default_rng(5)
    sets = [
        np.unique(rng.integers(0, 90, rng.integers(0, 60))).astype(np.uint64) << np.uint64(57)
        for _ in range(50)
    ]
    pairs = np.sort(rng.integers(0, 50, (60, 2)), axis=1)
    as_sets = [set(values.tolist()) for values in sets]
    wanted = [len(as_sets[i] & as_sets[j]) / max(len(as_sets[i] | as_sets[j]), 1) for i, j in pairs]
    assert jaccard_of_pairs(sets, pairs).tolist() == wanted
    least = sorted(wanted)[-10]  # exactly at the bound counts
    settings = dataclasses.replace(SETTINGS, min_jaccard=least)
    assert are_alike(sets, pairs, settings).tolist() == [value >= least for value in wanted]
    assert jaccard_of_pairs(sets, pairs[:0]).tolist() == []


def test_no_documents_have_no_duplicates():
    assert find([]).near.tolist() == []
    assert find(["only one text here and no other"]).near.tolist() == [False]


def test_bands_that_need_more_hashes_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"dedup\.DedupSettings"):
        DedupSettings(bands=30, rows=5)
