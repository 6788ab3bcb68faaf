"""Writes every mutant of a source file into that file. One is selected at run time.

The place and the replacement come from `cargo mutants --list --json`, which gives an operator without its operands.
This module finds them in the tokens. It relies on rustfmt: only an operator between two operands has spaces around it.
"""

import re

TOKEN = re.compile(
    r"""(?P<trivia>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<text>b?r(?P<hashes>\#*)".*?"(?P=hashes) | b?"(?:\\.|[^"\\])*" | b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'])')
      | (?P<lifetime>'[A-Za-z_]\w*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<number>\d[\w]*(?:\.\d[\w]*)?)
      | (?P<operator><<=|>>=|\.\.=|\.\.\.|::|->|=>|==|!=|<=|>=|&&|\|\||\+=|-=|\*=|/=|%=|\^=|&=|\|=|<<|>>|\.\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
PRECEDENCE = {}
for level, operators in enumerate(
    ["= += -= *= /= %= ^= &= |= <<= >>=", ".. ..=", "||", "&&", "== != < > <= >=", "|", "^", "&", "<< >>", "+ -", "* / %"], 1
):
    PRECEDENCE.update(dict.fromkeys(operators.split(), level))
UNARY = 99
OPEN, CLOSE = "([{", ")]}"
HEADS = {"if", "while", "match", "in"}
BEFORE_AN_OPERAND = HEADS | {"return", "break", "else", "let", "move"}


class Unexpressed(Exception):
    """A mutant that cannot be part of the schema and needs its own build."""


class Impossible(Exception):
    """A mutant that certainly does not compile."""


class Token:
    def __init__(self, kind, text, start, blank_before):
        self.kind, self.text, self.start, self.end = kind, text, start, start + len(text)
        self.blank_before, self.blank_after, self.partner = blank_before, False, None


class Source:
    def __init__(self, text):
        self.text = text
        self.lines = [0]
        for line in text.split("\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)
        self.tokens = []
        blank = True
        for match in TOKEN.finditer(text):
            if match.lastgroup == "trivia" or match.group("trivia") is not None:
                blank = True
                if self.tokens:
                    self.tokens[-1].blank_after = True
                continue
            kind = next(k for k in ("text", "lifetime", "word", "number", "operator") if match.group(k) is not None)
            self.tokens.append(Token(kind, match.group(0), match.start(), blank))
            blank = False
        opened = []
        for index, token in enumerate(self.tokens):
            if token.kind == "operator" and token.text in OPEN:
                opened.append(index)
            elif token.kind == "operator" and token.text in CLOSE:
                token.partner = opened.pop()
                self.tokens[token.partner].partner = index
        self.at = {token.start: index for index, token in enumerate(self.tokens)}

    def offset(self, place):
        return self.lines[place["line"] - 1] + place["column"] - 1

    def level(self, index):
        """Returns its precedence, if it is between two operands."""
        token = self.tokens[index]
        if token.kind != "operator" or token.text not in PRECEDENCE:
            return None
        if token.text in ("..", "..="):
            return PRECEDENCE[token.text]
        if not (token.blank_before and token.blank_after) or index == 0:
            return None
        before = self.tokens[index - 1]
        operand = before.kind in ("text", "number") or before.text in ")]}?" or (
            before.kind == "word" and before.text not in BEFORE_AN_OPERAND
        ) or before.text == ">"  # the end of a type
        return PRECEDENCE[token.text] if operand else None

    def left(self, index, level):
        """Returns where the operand before this token begins."""
        here = index
        while here > 0:
            token = self.tokens[here - 1]
            if token.kind == "operator":
                if token.text in CLOSE:
                    following = self.tokens[here]
                    if token.text == "}" and here != index and following.text not in (".", "?") and self.level(here) is None:
                        return here
                    here = token.partner
                    continue
                if token.text in OPEN or token.text in (";", ",", "=>", ":"):
                    return here
                if token.text in ("|", "||") and self.level(here - 1) is None:
                    return here
                other = self.level(here - 1)
                if other is not None and other < level:
                    return here
            elif token.kind == "word" and token.text in BEFORE_AN_OPERAND:
                return here
            here -= 1
        return here

    def head(self, index):
        """Returns whether a `{` after this token begins a block, and whether a `let` comes before it."""
        here, let = index, False
        while here > 0:
            token = self.tokens[here - 1]
            if token.kind == "operator":
                if token.text in CLOSE:
                    if token.text == "}" and self.tokens[here].text not in (".", "?") and self.level(here) is None:
                        return False, let
                    here = token.partner
                    continue
                if token.text in OPEN or token.text in (";", "=>"):
                    return False, let
            elif token.text == "let":
                let = True
            elif token.text in HEADS:
                return True, let
            here -= 1
        return False, let

    def right(self, index, level, head):
        """Returns where the operand after this token ends."""
        here = index + 1
        while here < len(self.tokens):
            token = self.tokens[here]
            if token.kind == "operator":
                if token.text in CLOSE or token.text in (";", ",", "=>"):
                    break
                if token.text == "{" and head:
                    break
                if token.text in OPEN:
                    here = token.partner + 1
                    continue
                other = self.level(here)
                if other is not None and (other <= level and not (other == level == 1)):
                    break
            elif token.kind == "word" and (token.text == "else" or (token.text == "as" and level == UNARY)):
                break
            here += 1
        return here

    def chain_has_let(self, index):
        head, let = self.head(index)
        if not head:
            return False
        if let:
            return True
        here = index + 1
        while here < len(self.tokens):
            token = self.tokens[here]
            if token.text == "let":
                return True
            if token.text in CLOSE or token.text in ("{", ";", "=>"):
                return False
            here = token.partner + 1 if token.text in OPEN else here + 1
        return False


def chosen(number):
    return f"crate::mutant::is({number})"


class Site:
    """A range of the source that is rewritten, for all mutants that begin there.

    Of two with the same range, the one with the lower rank encloses the other."""

    def __init__(self, start, end, write, rank=1):
        self.start, self.end, self.write, self.rank = start, end, write, rank


def sites(source, mutants):
    """Returns the sites of one file's mutants, and the reasons of those without one, by number."""
    found, without = [], {}
    operators = {}
    for mutant in mutants:
        number, genre = mutant["number"], mutant["genre"]
        start, end = source.offset(mutant["span"]["start"]), source.offset(mutant["span"]["end"])
        try:
            if genre == "FnValue":
                if "-> impl Iterator<" in mutant["function"]["return_type"]:
                    operators.setdefault(("iterator", start, end), []).append(mutant)
                else:
                    found.append(of_body(number, start, mutant["replacement"]))
            elif genre == "BinaryOperator":
                operators.setdefault(start, []).append(mutant)
            elif genre == "UnaryOperator":
                found.append(of_unary(source, number, start))
            elif genre == "MatchArmGuard":
                operators.setdefault(("guard", start, end), []).append(mutant)
            elif genre == "MatchArm":
                operators.setdefault(("arm", start, end), []).append(mutant)
            elif genre == "StructField":
                found.append(of_field(source, number, start, end))
            else:
                raise Unexpressed(f"no way to write {genre}")
        except (Unexpressed, Impossible) as why:
            without[number] = why
    for place, group in operators.items():
        if isinstance(place, tuple):
            found.append(of_group(source, place, group))
            continue
        try:
            found.append(of_binary(source, place, group))
        except (Unexpressed, Impossible) as why:
            without.update({mutant["number"]: why for mutant in group})
    return found, without


def of_body(number, start, replacement):
    return Site(start, start, lambda _: f"if {chosen(number)} {{ return {replacement}; }} ", rank=0)


def of_binary(source, place, group):
    index = source.at[place]
    operator = source.tokens[index].text
    level = source.level(index)
    if level is None:
        raise Unexpressed("an operator without operands")
    if operator in ("&&", "||") and source.chain_has_let(index):
        raise Impossible("a chain with `let` has no `||`")
    head, _ = source.head(index)
    begin = source.tokens[source.left(index, level)].start
    finish = source.tokens[source.right(index, level, head) - 1].end
    after = place + len(operator)

    def write(text):
        left, right = text(begin, place), text(after, finish)
        if operator in ("&&", "||"):
            (mutant,) = group
            carries_on = "==" if operator == "&&" else "!="
            # With `&&` the left side decides if it is false, with `||` if it is true.
            decides = f"if it_ {carries_on} {chosen(mutant['number'])} {{ it_ }} else {{ {right} }}"
            return f"({{ let it_: bool = {left}; {decides} }})"
        if operator in ("==", "!="):
            (mutant,) = group
            return f"(({left}{operator}{right}) != {chosen(mutant['number'])})"
        whole = ""
        for mutant in group:
            whole += f"if {chosen(mutant['number'])} {{ {left}{mutant['replacement']}{right} }} else "
        return f"({whole}{{ {left}{operator}{right} }})"

    return Site(begin, finish, write)


def of_unary(source, number, start):
    index = source.at[start]
    head, _ = source.head(index)
    finish = source.tokens[source.right(index, UNARY, head) - 1].end

    def write(text):
        operand = text(start + 1, finish)
        return f"(if {chosen(number)} {{ {operand} }} else {{ {source.text[start]}{operand} }})"

    return Site(start, finish, write)


def of_field(source, number, start, end):
    index = source.at[start]
    name = source.tokens[index].text
    here = index
    while source.tokens[here].text != "..":
        token = source.tokens[here]
        here = token.partner + 1 if token.text in OPEN else here + 1
    base = source.text[source.tokens[here].end : source.tokens[source.right(here, 1, False) - 1].end]
    # The value is used twice, and the first use would move it.
    base = re.sub(r"(?<=[(\s])([a-z_]+)(?=[,)])", r"\1.clone()", base)
    colon = source.tokens[index + 1]
    value_start = colon.end if colon.text == ":" else start
    value_end = end - 1 if source.text[end - 1] == "," else end

    def write(text):
        return f"{name}: if {chosen(number)} {{ ({base}).{name} }} else {{ {text(value_start, value_end)} }}{source.text[value_end:end]}"

    return Site(start, end, write)


def of_group(source, place, group):
    kind, start, end = place
    if kind == "iterator":

        def write_iterator(text):
            whole = "".join(f"if {chosen(m['number'])} {{ Box::new({m['replacement']}) }} else " for m in group)
            kind = group[0]["function"]["return_type"].removeprefix("-> impl ")
            return f"{{ let it_: Box<dyn {kind} + '_> = {whole}{{ Box::new({{ {text(start, end)} }}) }}; it_ }}"

        return Site(start, end, write_iterator, rank=0)
    if kind == "guard":
        always = [m["number"] for m in group if m["replacement"] == "true"]
        never = [m["number"] for m in group if m["replacement"] == "false"]

        def write(text):
            whole = f"({text(start, end)})"
            for number in never:
                whole = f"(!{chosen(number)} && {whole})"
            for number in always:
                whole = f"({chosen(number)} || {whole})"
            return whole

        return Site(start, end, write, rank=0)
    (mutant,) = group
    index = source.at[start]
    while source.tokens[index].text != "=>":
        token = source.tokens[index]
        index = token.partner + 1 if token.text in OPEN else index + 1
    arrow = source.tokens[index].start
    guard = next((t for t in source.tokens[source.at[start] : index] if t.text == "if"), None)
    if guard is None:
        return Site(arrow, arrow, lambda _: f"if !{chosen(mutant['number'])} ")
    return Site(guard.end, guard.end, lambda _: f" !{chosen(mutant['number'])} && ")


def rewrite(text, mutants):
    """Returns the file with its mutants, and the reasons of those that are not in it, by number."""
    source = Source(text)
    found, without = sites(source, mutants)

    # Outer sites first. Inserted text precedes the text that is wrapped at the same place.
    order = sorted(found, key=lambda site: (site.start, site.end != site.start, -site.end, site.rank))
    position = {id(site): number for number, site in enumerate(order)}

    def render(start, end, outer=None):
        pieces, here = [], start
        for site in order[position[id(outer)] + 1 if outer else 0 :]:
            if site.start >= end:
                break
            if site.start >= here and site.end <= end:
                pieces += [text[here : site.start], site.write(lambda s, e, site=site: render(s, e, site))]
                here = site.end
        return "".join([*pieces, text[here:end]])

    return render(0, len(text)), without
