"""Merges: which two tokens to glue next, learned from counts.

Byte-pair encoding counts which two neighbours meet most often, glues them everywhere, and counts again:

    l o w e r   l o w e s t     ->  (l, o) is everywhere  ->  lo w e r   lo w e s t
                                ->  (lo, w) comes next    ->  low e r   low e s t

`learn_merges_slow` and `apply_merges` are the obvious way, and the specification. `learn_merges` learns the
same merges far faster, and is what `BPETokenizer.train` calls.
"""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

# Turned letters (byte 0 becomes letter 255) and a last letter above them all: sorted upwards, the
# greatest byte string comes first, which is what a heap needs to break ties.
_UPSIDE_DOWN = bytes(range(255, -1, -1))

Pair = tuple[bytes, bytes]


def learn_merges_slow(word_counts: dict[bytes, int], num_merges: int) -> list[Pair]:
    """Return the merges, best first, by counting every pair of every word again for each merge.

    Words with their counts stand for the text, since no merge crosses a word's end. The highest count wins;
    equal counts go to the greater pair of byte strings. Fewer merges come back when nothing is left to glue.
    Source: Sennrich, Haddow, Birch 2016 (arXiv 1508.07909), algorithm 1; on bytes: Radford et al. 2019.
    """
    # 1. Begin with single bytes. Every text can be written in them, so no text is ever unknown.
    words = [([bytes([byte]) for byte in word], count) for word, count in word_counts.items()]
    merges: list[Pair] = []
    while len(merges) < num_merges:
        # 2. Count how often each two neighbours meet, a word that occurs n times counting n times.
        pair_counts: Counter[Pair] = Counter()
        for parts, count in words:
            for pair in pairwise(parts):
                pair_counts[pair] += count

        # 3. Glue the winner wherever it stands, and count anew: the gluing made new neighbours.
        if not pair_counts:
            break
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        merges.append(best)
        words = [(glue(parts, best), count) for parts, count in words]
    return merges


def glue(parts: list[bytes], pair: Pair) -> list[bytes]:
    """Return the parts with each such pair of neighbours made one, from left to right.

    In "aaa" the pair (a, a) glues the first two; the third finds no partner and stays alone.
    """
    # 1. Walk from the left. A glued part is stepped over whole, so none is used twice.
    glued, i = [], 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        glued.append(b"".join(parts[i : i + width]))
        i += width
    # 2. Hand back a new list; the old one may still be needed for counting.
    return glued


def apply_merges(word: bytes, ranks: dict[Pair, int]) -> list[bytes]:
    """Return the tokens of one word: its bytes, glued in the order in which the merges were learned.

    `ranks` says which merge came first (0), second (1) and so on.
    """
    # 1. Glue the pair that was learned earliest, as training did, until no known pair is left.
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        parts = glue(parts, best)
    # 2. What could not be glued stays a byte, so every word has its tokens.
    return parts


def learn_merges(word_counts: dict[bytes, int], num_merges: int) -> list[Pair]:
    """Return what `learn_merges_slow` returns, without counting anything twice.

    A merge changes only the words that contain its pair, and in them only the pairs beside it. So three
    things are kept: the counts, where each pair occurs, and a heap with the best pair on top. A word is a
    string with one letter per token (letter number 300 is token 300), so that `str.replace` does the gluing.
    """
    # 1. Count every pair once, and note which words to visit when it is merged.
    tokens = [bytes([byte]) for byte in range(256)]
    words = [word.decode("latin-1") for word in word_counts]
    times = list(word_counts.values())
    counts, where = _count_pairs(words, times)

    # 2. Put all pairs on a heap. Its top is the smallest entry, so counts go in negated.
    turned = [_turn(token) for token in tokens]
    heap = [(-count, turned[ord(pair[0])], turned[ord(pair[1])], pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        # 3. Take the top. If its count has fallen since, put it back in its place: counts never rise.
        count, first, second, pair = heapq.heappop(heap)
        if count != -counts[pair]:
            if counts[pair]:
                heapq.heappush(heap, (-counts[pair], first, second, pair))
            continue

        # 4. Make the new token, which is one more letter of the private alphabet.
        left, right = ord(pair[0]), ord(pair[1])
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
        turned.append(_turn(tokens[-1]))

        # 5. Glue it in the words that have it. Only pairs with the new token are new to the heap.
        for new in _merge_words(pair, chr(len(tokens) - 1), words, times, counts, where):
            heapq.heappush(heap, (-counts[new], turned[ord(new[0])], turned[ord(new[1])], new))
    return merges


def _turn(token: bytes) -> str:
    """Return a text that sorts the other way round: the greatest byte string first, as ties demand."""
    return token.translate(_UPSIDE_DOWN).decode("latin-1") + "\u0100"


def _count_pairs(words: list[str], times: list[int]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Return how often each pair of letters occurs in the text, and in which words."""
    # 1. Let a word that occurs n times count n times. A word may be noted twice for one pair; that is harmless.
    counts: dict[str, int] = defaultdict(int)
    where: dict[str, list[int]] = defaultdict(list)
    for number, word in enumerate(words):
        for left, right in pairwise(word):
            counts[left + right] += times[number]
            where[left + right].append(number)
    # 2. Return both: the first chooses the merge, the second finds it.
    return counts, where


def _merge_words(
    pair: str, letter: str, words: list[str], times: list[int], counts: dict[str, int], where: dict[str, list[int]]
) -> set[str]:
    """Write `letter` for `pair` in all words, keep the counts true, and return the pairs that are new."""
    # 1. Visit each word that had the pair when it was last noted; it may have lost it to another merge.
    fresh: set[str] = set()
    for number in where.pop(pair):
        old, n = words[number], times[number]
        if pair not in old:
            continue
        # 2. Glue from left to right, which is what `str.replace` does.
        words[number] = new = old.replace(pair, letter)
        at = new.find(letter)
        while at >= 0:
            # 3. Let go of the pair with the left neighbour (its old end, if it was glued too) and count the new one.
            if at:
                before = new[at - 1]
                counts[(pair[1] if before == letter else before) + pair[0]] -= n
                counts[before + letter] += n
                fresh.add(before + letter)
                where[before + letter].append(number)
            # 4. Do the same on the right. A glued right neighbour does it from its own left side.
            after = new[at + 1 : at + 2]
            if after and after != letter:
                counts[pair[1] + after] -= n
                counts[letter + after] += n
                fresh.add(letter + after)
                where[letter + after].append(number)
            # 5. Go on to the next place in this word.
            at = new.find(letter, at + 1)
    # 6. Nothing is left of the pair; whatever steps 3 and 4 took off it was its own overlap with itself.
    counts[pair] = 0
    return fresh
