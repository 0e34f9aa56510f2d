"""Merges: which two tokens to glue next, learned by counting.

Byte-pair encoding counts which two neighbours meet most often, glues them everywhere, and counts again:

    l o w e r   l o w e s t     ->  (l, o) and (o, w) meet twice, and so does (w, e): the greatest goes first
    l o we r    l o we s t      ->  (o, we) is next
    l owe r     l owe s t       ->  and so on, until enough merges are learned

`learn_merges_slow` and `apply_merges` are the obvious way, and the specification. `learn_merges` learns the
same merges far faster, and is what `BPETokenizer.train` calls.
"""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

# A merge, and a pair that may become one: two tokens that stand side by side.
Pair = tuple[bytes, bytes]

# All bytes turned round, 0 for 255 and so on: the greatest sorts first, which is what a heap needs for ties.
_TURNED = bytes(range(255, -1, -1))


def learn_merges_slow(word_counts: dict[bytes, int], num_merges: int) -> list[Pair]:
    """Return the merges in the order they are learned, counting every pair anew for each of them.

    Words with their counts stand for the text, since no merge crosses a word's end. The highest count wins;
    equal counts go to the greater pair of byte strings, so that everybody learns the same merges. Fewer come
    back when nothing is left to glue.
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
        # 3. Choose the winner. Without neighbours every word is one token, and nothing is left to learn.
        if not pair_counts:
            break
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        # 4. Glue it wherever it stands, and count again: the gluing made new neighbours.
        merges.append(best)
        words = [(glue(parts, best), count) for parts, count in words]
    return merges


def glue(parts: list[bytes], pair: Pair) -> list[bytes]:
    """Return the parts with each such pair of neighbours made one, from left to right.

    In "aaa" the pair (a, a) glues the first two; the third finds no partner and stays alone.
    """
    # 1. Walk from the left, and step over a glued part whole, so that no part is used twice.
    glued, i = [], 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        glued.append(b"".join(parts[i : i + width]))
        i += width
    # 2. Hand back a new list; the old one may still be in use.
    return glued


def apply_merges(word: bytes, ranks: dict[Pair, int]) -> list[bytes]:
    """Return the tokens of one word: its bytes, glued in the order in which the merges were learned.

    `ranks` says which merge came first (0), second (1) and so on. What no merge glues stays a single byte.
    """
    # 1. Glue the pair that was learned earliest, as training did, until no known pair is left.
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        # 2. Look again. The new part may have made an even earlier pair with a neighbour.
        parts = glue(parts, best)
    return parts


def apply_merges_singly(word: bytes, ranks: dict[Pair, int]) -> list[bytes]:
    """Return the tokens of one word, gluing one pair at a time: the earliest learned, of equals the leftmost.

    This is `apply_merges` for lists that training never leaves behind, in which a merge may stand before its own
    parts, or one token have several merges (Llama 3's file lists every way to make each token): there, gluing a
    pair can call an earlier one up, before it is glued elsewhere. Costs n·log n for n bytes.
    Source: what the `tokenizers` library does, which reads these files.
    """
    # 1. Link each part to its neighbours, and put every known pair on a heap, the earliest on top.
    parts, end = [bytes([byte]) for byte in word], len(word)
    left, right = list(range(-1, end - 1)), list(range(1, end + 1))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        # 2. Take the top, unless one of the two has been glued since it was put there.
        rank, i = heapq.heappop(heap)
        j = right[i]
        if j == end or ranks.get((parts[i], parts[j])) != rank:
            continue

        # 3. Glue into the left one's place. What stays in the right one's place is empty, and in no pair.
        parts[i], parts[j], right[i] = parts[i] + parts[j], b"", right[j]
        if right[i] < end:
            left[right[i]] = i

        # 4. Look at the pairs with the two new neighbours.
        for k in (left[i], i):
            if k >= 0 and right[k] < end and (pair := (parts[k], parts[right[k]])) in ranks:
                heapq.heappush(heap, (ranks[pair], k))
    return [part for part in parts if part]


def learn_merges(word_counts: dict[bytes, int], num_merges: int) -> list[Pair]:
    """Return what `learn_merges_slow` returns, without counting anything twice.

    A merge changes only the words that contain its pair, and in them only the pairs beside it. So three
    things are kept up to date: the counts, where each pair occurs, and a heap with the best pair on top.

    A word is kept as a string with one character per token (character number 300 is token 300), so that
    `str.replace`, which runs in C, does the gluing from left to right.
    """
    # 1. Count every pair once, and note which words to visit when it is merged.
    tokens = [bytes([byte]) for byte in range(256)]
    words = [word.decode("latin-1") for word in word_counts]
    times = list(word_counts.values())
    counts, where = _count_pairs(words, times)

    # 2. Put all pairs on a heap. Its top is the smallest entry: counts go in negated, bytes turned round.
    turned = [_turn(token) for token in tokens]
    heap = [(-count, turned[ord(pair[0])], turned[ord(pair[1])], pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        # 3. Take the top. An old entry may promise more than other merges left of it: then put it back lower.
        count, left_key, right_key, pair = heapq.heappop(heap)
        if -count > counts[pair]:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], left_key, right_key, pair))
            continue

        # 4. Make the new token. It is one more character of the private alphabet.
        left, right = tokens[ord(pair[0])], tokens[ord(pair[1])]
        merges.append((left, right))
        tokens.append(left + right)
        turned.append(_turn(left + right))

        # 5. Glue it in the words that have it. Only pairs with the new token in them are new to the heap.
        for new in _merge_words(pair, chr(len(tokens) - 1), words, times, counts, where):
            heapq.heappush(heap, (-counts[new], turned[ord(new[0])], turned[ord(new[1])], new))
    return merges


def _turn(token: bytes) -> str:
    """Return a key that sorts the greatest token first. Its last character puts "ab" behind "abc"."""
    return token.translate(_TURNED).decode("latin-1") + "\u0100"


def _count_pairs(words: list[str], times: list[int]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Return how often each pair of characters occurs in the text, and in which words.

    `words` are the different words, and `times` says how often each of them occurs.
    """
    # 1. Let a word that occurs n times count n times.
    counts: dict[str, int] = defaultdict(int)
    where: dict[str, list[int]] = defaultdict(list)
    for number, word in enumerate(words):
        for left, right in pairwise(word):
            # 2. Note the word each time. One noted twice is visited twice, and then found done: no harm.
            counts[left + right] += times[number]
            where[left + right].append(number)
    return counts, where


def _merge_words(
    pair: str,
    new_token: str,
    words: list[str],
    times: list[int],
    counts: dict[str, int],
    where: dict[str, list[int]],
) -> set[str]:
    """Write the new token for the pair in all words, keep the counts true, and return the new pairs."""
    # 1. Visit each word that had the pair when it was last noted; another merge may have taken it since.
    new_pairs: set[str] = set()
    for number in where.pop(pair):
        if pair not in words[number]:
            continue
        # 2. Glue, then look at the neighbours of the new token alone; all other pairs are as they were.
        words[number] = words[number].replace(pair, new_token)
        for left, right in pairwise(words[number]):
            if left != new_token and right != new_token:
                continue
            # 3. Take off the pair that stood here before, when the glued tokens met their neighbours apart.
            old_left = pair[1] if left == new_token else left
            old_right = pair[0] if right == new_token else right
            counts[old_left + old_right] -= times[number]
            # 4. Count the pair that stands here now.
            counts[left + right] += times[number]
            where[left + right].append(number)
            new_pairs.add(left + right)
    # 5. Close the pair's account. Nothing is left of it, and where it overlapped itself, step 3 miscounted.
    counts[pair] = 0
    return new_pairs
