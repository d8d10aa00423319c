"""Which emoji become concepts, what they are called, and how two icon sets spell their names."""

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(" ".join(name.split()) for name in text.split(";"))


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(": ") for pair in sorted(_names(text)))


# No pictures a person would ask for; and groups of which only a few, named below, are.
DROPPED_GROUPS = {"flags", "component"}
CHOSEN_GROUPS = {"people-body", "symbols"}

# People: one gender-neutral variant of each, few poses. Symbols: only those that draw a thing.
CHOSEN = _names("""
    waving hand; raised hand; hand with fingers splayed; vulcan salute; OK hand; pinched
    fingers; victory hand; crossed fingers; love-you gesture; sign of the horns; call me hand;
    index pointing up; thumbs up; thumbs down; raised fist; oncoming fist; clapping hands;
    raising hands; heart hands; open hands; handshake; folded hands; writing hand; nail polish;
    selfie; flexed biceps; mechanical arm; mechanical leg; leg; foot; ear; nose; brain;
    anatomical heart; lungs; tooth; bone; eyes; eye; tongue; mouth; biting lip; baby; child;
    boy; girl; person; person: blond hair; man; person: beard; woman; older person; old man; old
    woman; person raising hand; person bowing; person facepalming; person shrugging; health
    worker; student; teacher; judge; farmer; cook; mechanic; factory worker; scientist;
    technologist; singer; artist; pilot; astronaut; firefighter; police officer; detective;
    guard; ninja; construction worker; person with crown; prince; princess; person wearing
    turban; person with skullcap; woman with headscarf; person in tuxedo; person with veil;
    pregnant woman; baby angel; Santa Claus; Mrs. Claus; superhero; supervillain; mage; fairy;
    vampire; merperson; merman; mermaid; elf; genie; zombie; troll; person getting massage;
    person getting haircut; person walking; person running; ballet dancer; woman dancing; man
    dancing; person in suit levitating; people with bunny ears; person climbing; person fencing;
    horse racing; skier; snowboarder; person golfing; person surfing; person rowing boat; person
    swimming; person bouncing ball; person lifting weights; person biking; person cartwheeling;
    people wrestling; person playing water polo; person playing handball; person juggling;
    person in lotus position; person taking bath; person in bed; couple with heart; kiss;
    family; people hugging; footprints; fingerprint; bust in silhouette; warning; no entry;
    prohibited; no bicycles; no smoking; radioactive; biohazard; children crossing; wheelchair
    symbol; litter in bin sign; potable water; water closet; atom symbol; star of David; wheel
    of dharma; yin yang; latin cross; peace symbol; menorah; star and crescent; recycling
    symbol; fleur-de-lis; trident emblem; check mark; cross mark; red question mark; red
    exclamation mark; infinity; heavy dollar sign; eight-pointed star; splatter; medical symbol;
    red circle; orange circle; yellow circle; green circle; blue circle; purple circle; brown
    circle; black circle; red square; orange square; yellow square; green square; blue square;
    purple square; brown square; black large square; large orange diamond; large blue diamond;
    red triangle pointed up; red triangle pointed down
""")

# Near-duplicates of a kept picture, white on white, writing, or country maps.
DROPPED = _names("""
    white heart; magnifying glass tilted right; chart increasing with yen; speaker low volume;
    speaker medium volume; bell with slash; closed mailbox with lowered flag; open mailbox with
    raised flag; open mailbox with lowered flag; waxing crescent moon; waxing gibbous moon;
    waning gibbous moon; last quarter moon; waning crescent moon; last quarter moon face; left
    speech bubble; ATM sign; snowman without snow; sun behind large cloud; map of Japan; e-mail;
    mobile phone with arrow; globe showing Europe-Africa; globe showing Asia-Australia; club
    suit; spade suit; heart suit; diamond suit; dotted line face; heart decoration; nazar
    amulet; flower playing cards; mahjong red dragon; head shaking horizontally; head shaking
    vertically; distorted face; kaaba; hamsa; love hotel; Japanese post office; pager; fax
    machine; level slider; control knobs; trackball; computer disk; card index; card index
    dividers; card file box; bookmark tabs; page with curl; page facing up; ledger; spiral
    notepad; inbox tray; outbox tray; envelope with arrow; incoming envelope; locked with pen;
    admission tickets; sports medal; pine decoration; tanabata tree; moon viewing ceremony;
    suspension railway; mountain cableway; mountain railway; tram car; light rail; railway car;
    minibus; oncoming taxi; oncoming bus; oncoming police car; right anger bubble; eye in speech
    bubble; heart exclamation; muted speaker; prayer beads; funeral urn; identification card;
    placard; globe with meridians; anger symbol; yen banknote; pound banknote; derelict house;
    red envelope; file cabinet; label; chart decreasing; name badge; beverage box; office
    building; classical building
""")

# emojibase label: what a person would call it.
FRIENDLY = {
    "camping": "campsite",
    "horse racing": "horse race",
    "building construction": "building site",
    "infinity": "infinity sign",
    "pouring liquid": "glass of pouring liquid",
    "index pointing up": "finger pointing up",
    "person: blond hair": "person with blond hair",
    "person: beard": "person with a beard",
    "Mrs. Claus": "mrs claus",
    "1st place medal": "gold medal",
    "2nd place medal": "silver medal",
    "3rd place medal": "bronze medal",
    "globe showing Americas": "globe showing the americas",
    "hourglass done": "hourglass",
    "hourglass not done": "hourglass with flowing sand",
    "magnifying glass tilted left": "magnifying glass",
    "speaker high volume": "speaker with sound waves",
    "closed mailbox with raised flag": "mailbox",
    "automobile": "car",
    "oncoming automobile": "oncoming car",
    "sport utility vehicle": "suv",
    "locked": "closed padlock",
    "unlocked": "open padlock",
    "locked with key": "padlock with key",
    "high voltage": "lightning bolt",
    "collision": "explosion",
    "dizzy": "dizzy star",
    "performing arts": "theater masks",
    "flag in hole": "golf hole with flag",
    "tennis": "tennis racket and ball",
    "bowling": "bowling ball and pins",
    "badminton": "badminton racket and shuttlecock",
    "ping pong": "ping pong paddle and ball",
    "field hockey": "field hockey stick and ball",
    "ice hockey": "ice hockey stick and puck",
    "lacrosse": "lacrosse stick and ball",
    "cricket game": "cricket bat and ball",
    "cooking": "fried egg in a pan",
    "locomotive": "steam locomotive",
    "sake": "sake bottle and cup",
    "mate": "mate drink",
    "ice": "ice cube",
    "foggy": "foggy city",
    "wedding": "wedding chapel",
    "construction": "construction barrier",
    "dashing away": "puff of wind",
    "star-struck": "star-struck face",
    "rolling on the floor laughing": "face rolling on the floor laughing",
    "pick": "pickaxe",
    "link": "chain link",
    "yarn": "ball of yarn",
    "thread": "spool of thread",
    "station": "train station",
    "ZZZ": "zzz",
    "warning": "warning sign",
    "no entry": "no entry sign",
    "prohibited": "prohibited sign",
    "no bicycles": "no bicycles sign",
    "no smoking": "no smoking sign",
    "radioactive": "radioactive sign",
    "biohazard": "biohazard sign",
    "children crossing": "children crossing sign",
    "potable water": "drinking water sign",
    "water closet": "toilet sign",
    "heavy dollar sign": "dollar sign",
    "black large square": "black square",
    "large orange diamond": "orange diamond",
    "large blue diamond": "blue diamond",
    "nose": "human nose",
    "dna": "dna strand",
    "kiss": "couple kissing",
    "selfie": "hand taking a selfie",
    "oncoming fist": "fist",
    "night with stars": "city at night with stars",
    "seat": "airplane seat",
    "hundred points": "one hundred points",
}

# fxemoji icon: emojibase label, where the spelling differs or seems to name another picture.
FIREFOX = _pairs("""
    dog: dog face; dogside: dog; cat: cat face; catside: cat; pig: pig face; pigside: pig;
    tiger: tiger face; tigerside: tiger; mouse: mouse face; mouseside: mouse; bunny: rabbit
    face; bunnyside: rabbit; dragonhead: dragon face; dragonside: dragon; spurtingwhale:
    spouting whale; leopardside: leopard; bactriancamel: two-hump camel; dromedarycamel: camel;
    hampster: hamster; evergreen: evergreen tree; housebuilding: house; housebuildings: houses;
    aubergine: eggplant; earofmaize: ear of corn; chilipepper: hot pepper; sliceofpizza: pizza;
    curryandrice: curry rice; sakebottleandcup: sake; fishcakeswirl: fish cake with swirl;
    electrictorch: flashlight; highspeedtrainbulletnose: bullet train; snowmountains:
    snow-capped mountain; toykotower: Tokyo tower; fatherchristmas: Santa Claus; heels:
    high-heeled shoe; mansshirt: t-shirt; mensshoe: man's shoe; womansshirt: woman's clothes;
    makeupbag: clutch bag; pinkwallet: purse; darksunglasses: sunglasses; sunglasses: smiling
    face with sunglasses; skiandskiboot: skis; chartupwardstrend: chart increasing;
    americasglobe: globe showing Americas; banknotedollar: dollar banknote; banknoteeuro: euro
    banknote; studiomic: studio microphone; leftmagnifyingglass: magnifying glass tilted left;
    lowerleftpencil: pencil; lowerleftpen: pen; lowerleftcrayon: crayon; lowerleftpaintbrush:
    paintbrush; lowerleftfountainpen: fountain pen; monkeysee: see-no-evil monkey; monkeyhear:
    hear-no-evil monkey; monkeyspeak: speak-no-evil monkey; heartgreen: green heart;
    heartpurple: purple heart; heartyellow: yellow heart; heartarrow: heart with arrow; 2hearts:
    two hearts; grinsquint: grinning squinting face; grinsweat: grinning face with sweat;
    grintears: face with tears of joy; winking: winking face; screamfear: face screaming in
    fear; loudlycrying: loudly crying face; crying: crying face; devilhorns: smiling face with
    horns; imp: angry face with horns; smileeyes: smiling face with smiling eyes; anguish:
    anguished face; poo: pile of poo; sheep: ewe; cancellationx: cross mark; umbrella: closed
    umbrella; beachumbrella: beach with umbrella; cellphone: mobile phone; bullhorn:
    loudspeaker; blackskullcrossbones: skull and crossbones; present: wrapped gift; gma: old
    woman; gpa: old man; policecarsrevolvinglight: police car light; ringingbell: bell;
    stormcloud: cloud with lightning and rain; fireworksparkler: sparkler; confetti: confetti
    ball; onebuttonmouse: computer mouse; blackrosette: rosette; sleuthspy: detective;
    weightlifter: person lifting weights; manltepiececlock: mantelpiece clock; sweatsplash:
    sweat droplets; speaker3soundwaves: speaker high volume; thoughtbaloon: thought balloon;
    speechbubble: speech balloon; openlock: unlocked; lock: locked; lockandkey: locked with key;
    bouquetofflowers: bouquet; doveofpeace: dove; spiralcalendarpad: spiral calendar;
    handheldvideocamera: video camera; star: glowing star; waving: waving hand; wave: water
    wave; smallfrown: slightly frowning face; frownmouth: frowning face with open mouth;
    smallsmile: slightly smiling face; grin: grinning face; grinwide: grinning face with big
    eyes; grineyes: beaming face with smiling eyes; grinwideeyes: grinning face with smiling
    eyes; perservere: persevering face; constructionsign: construction; construction: building
    construction; bow: ribbon; bowing: person bowing; kiss: kissing face; kissing: face blowing
    a kiss; kissclosedeyes: kissing face with closed eyes; kisseyes: kissing face with smiling
    eyes; tongueoutwink: winking face with tongue; tongueoutwink2: squinting face with tongue;
    sunrays: sun; high5: raising hands; hands: open hands; handup: person raising hand;
    personalcomputer: desktop computer; oldpersonalcomputer: laptop; fistedhand: oncoming fist;
    aok: OK hand; index: index pointing up; flexbicep: flexed biceps; leftwritinghand: writing
    hand; couple: couple with heart; wiredkeyboard: keyboard; turban: person wearing turban;
    guapimao: person with skullcap; bride: person with veil; headmassage: person getting
    massage; bunny-ears: people with bunny ears; snowmanwithoutsnow: snowman; blacktelephone:
    telephone; largebluecircle: blue circle; largeredcircle: red circle; warningsign: warning
""")
EMOJIONE = _pairs("""
    cat-face-with-tears-of-joy: cat with tears of joy; cat-face-with-wry-smile: cat with wry
    smile; grinning-cat-face: grinning cat; grinning-cat-face-with-smiling-eyes: grinning cat
    with smiling eyes; kissing-cat-face: kissing cat; pouting-cat-face: pouting cat;
    weary-cat-face: weary cat; smiling-cat-face-with-heart-eyes: smiling cat with heart-eyes;
    laptop-computer: laptop; exclamation-mark: red exclamation mark
""")
ALIASES = {"firefox": FIREFOX, "emojione": EMOJIONE}

# Other pictures under these names: a hoop, a real gun, writing, app icons, silhouettes, women for
# plain faces; or broken drawings.
REFUSED = {
    "firefox": _names("""
        basketballandhoop; beating-heart; bouquet; calendar; compression; construct; couplekiss;
        dancer; desktopcomputer; dizzyface; email; frown; gamedie; guardsman; heartblue; keyboard;
        linkedpaperclips; minidisc; pencil; pistol; pout; pouting; sunbehindcloud; threebuttonmouse;
        tramcar; up; whitemediumstar; window
    """),
    "emojione": frozenset({"calendar", "pistol", "up-button"}),
}


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn: its caption words and the names other sets may use for it."""

    label: str
    original: str
    hexcode: str
    group: str
    tags: tuple[str, ...]
    names: tuple[str, ...]


def plain(text: str) -> str:
    """Lower-case ASCII with single spaces: 'Piñata’s' -> "pinata's"."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'")).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^A-Za-z0-9' -]+", " ", text).lower().split())


def squash(name: str) -> str:
    """A spelling without case, spaces or punctuation, for joining sets by name."""
    return re.sub(r"[^a-z0-9]", "", plain(name))


def wanted(label: str, group: str, subgroup: str) -> bool:
    """Whether an emojibase entry becomes a concept, if enough styles draw it."""
    if group in DROPPED_GROUPS or label in DROPPED:
        return False
    if group in CHOSEN_GROUPS:
        return label in CHOSEN
    return not (subgroup == "time" and re.search(r"o’clock|-thirty", label))


def read_concepts(data: bytes, messages: bytes, shortcodes: list[bytes]) -> list[Concept]:
    """The curated concepts of emojibase's English data, in emojibase's order."""
    texts = json.loads(messages)
    groups = {entry["order"]: entry["key"] for entry in texts["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in texts["subgroups"]}
    codes: dict[str, list[str]] = {}
    for table in shortcodes:
        for hexcode, names in json.loads(table).items():
            codes.setdefault(hexcode, []).extend([names] if isinstance(names, str) else names)
    concepts = []
    for entry in json.loads(data):
        group = groups.get(entry.get("group"), "component")
        if wanted(entry["label"], group, subgroups.get(entry.get("subgroup"), "")):
            concepts.append(_concept(entry, group, codes.get(entry["hexcode"], [])))
    labels = [concept.label for concept in concepts]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(
            f"Two concepts would share the label {sorted(twice)}: rename one in FRIENDLY."
        )
    return concepts


def _concept(entry: dict[str, Any], group: str, codes: list[str]) -> Concept:
    original: str = entry["label"]
    label = plain(FRIENDLY.get(original, original))
    words = {plain(tag) for tag in entry.get("tags", [])}
    tags = tuple(
        sorted(
            word for word in words if len(word) > 2 and word not in label.split() and word != label
        )
    )
    return Concept(label, original, entry["hexcode"], group, tags, tuple(dict.fromkeys(codes)))


def join_by_name(style: str, icons: list[str], concepts: list[Concept]) -> dict[str, str]:
    """Which icon of a set without code points draws which concept: {original label: icon}.

    The table above wins, then the exact label, then a shortcode that belongs to one concept only.
    """
    aliases = ALIASES.get(style, {})
    icons = [icon for icon in icons if icon not in REFUSED.get(style, ()) or icon in aliases]
    by_label = {squash(concept.original): concept.original for concept in concepts}
    by_code: dict[str, set[str]] = {}
    for concept in concepts:
        for name in concept.names:
            by_code.setdefault(squash(name), set()).add(concept.original)
    joined: dict[str, str] = {}
    taken = set()
    for icon, label in aliases.items():
        original = by_label.get(squash(label))
        if original and icon in icons:
            joined[original] = icon
        taken.add(icon)
    for icon in icons:
        original = by_label.get(squash(icon))
        if original and icon not in taken and original not in joined:
            joined[original] = icon
            taken.add(icon)
    for icon in icons:
        owners = by_code.get(squash(icon), set())
        if icon not in taken and len(owners) == 1 and not owners & joined.keys():
            joined[min(owners)] = icon
            taken.add(icon)
    return joined
