"""What is written in the pictures. A fifth of the everyday words is never drawn for training."""

from __future__ import annotations

import random
import zlib


def listed(text: str, between: str | None = None) -> list[str]:
    return text.split(between)


EVERYDAY = listed("""
about above actor after again agent alarm album alone along angle animal answer apple april arrow artist aspen atlas
august aunt autumn award bacon badge baker ball bamboo banana band bank barn basin basket beach bean bear beauty beetle
bell bench berry bicycle bird biscuit blanket block blossom board boat bone book bottle bowl box branch brave bread
breeze brick bridge bright broom brother brush bubble bucket budget bus butter button cabin cable cactus cake camel
camera camp canal candle canoe captain car card carpet carrot castle cat caution cave cedar cello chair chalk cherry
chess chest chicken child choir circus city clay clean clever cliff clock cloud clover coach coast coat cobra cocoa
coconut coffee coin comet common concert cook copper coral corn cotton cousin cow crab cradle crane cream creek cricket
crown crystal cup curtain cushion dance danger dawn deer delta desert desk dinner doctor dog dolphin donkey door dove
dragon dream dress drum duck eagle early earth east echo eel egg elbow elephant elm emerald engine evening exit fabric
falcon family farm feather fence fern festival field fig film finger fire fish flag flame flute fog forest fork fossil
fox free fresh friend frog frost fruit garage garden garlic gate ghost giant ginger giraffe glacier glass globe glove
goat gold golf goose grain grape grass gravel guitar gull hammer happy harbor harp harvest hat hawk hazel hedge hello
helmet hero hill holiday honey hood hope horse hotel hour house human ice igloo insect iron island ivory ivy jacket jam
jar jasmine jazz jelly jewel journey judge juice jungle kettle key king kitchen kite kiwi knee knife koala ladder lake
lamp lantern laptop large laurel lava lawn leaf learn leather lemon leopard letter library light lily lime linen lion
lizard llama lobster lock lotus lunch magic magnet mango map maple marble market mask meadow melon metal metro milk
mill mint mirror monkey month moon morning moss moth motor mountain mouse museum music nature needle nephew nest never
night noodle north notebook number nurse oak oasis ocean office olive onion open opera orbit orchid organ otter oven owl
oyster paint palace palm panda paper parade parcel park parrot party pasta path peach peanut pear pearl pebble pencil
pepper piano picnic pigeon pillow pilot pine pizza planet plate plum pocket poem polar pond pony poppy potato pottery
powder prince private prize public pump puppy puzzle quail quartz queen quick quiet quilt rabbit radio rain ranch raven
ready rice ring river robin rocket roof rope rose ruby sail salad salmon salt sand school scissors sea season secret
seed shadow shark sheep shell ship silk silver sister sky sleep slow smile snow soap sofa south spark spider spoon
spring stable station stone stop storm story street sugar summer sun surf swan table tailor tea teacher temple tent
theater thunder ticket tiger timber toast tomato torch tower trade train travel tree trumpet tulip tunnel turtle uncle
under unit valley vanilla velvet village violin voice wagon walnut water wave welcome west whale wheat wheel willow
window winter wolf wonder wood world yard year yogurt young zebra zero
""")

NAMES = listed("""
Ada Alan Alice Amir Anna Arun Bela Ben Bruno Carla Carmen Chen Clara Dana David Diego Elena Elif Emma Eric Fatima Felix
Finn Gita Grace Hana Hugo Ida Igor Iris Ivan Jana Jonas Julia Kai Karim Lara Leo Lin Lucia Luis Maria Marta Max Mila
Mina Nadia Nina Noah Nora Olga Omar Oscar Paul Petra Priya Rosa Ruben Ruth Sam Sara Sofia Stefan Tara Theo Tom Uma
Vera Victor Yara Yusuf Zoe
""")

SURNAMES = listed("""
Adams Alvarez Baker Berg Bianchi Brown Carter Costa Diaz Dubois Evans Fischer Garcia Gray Haas Hansen Hill Ito Jensen
Jones Kaya Keller Kim Klein Kumar Lang Lee Lopez Mann Martin Meyer Moore Nguyen Novak Okoro Olsen Park Patel Perez
Reed Rossi Sato Silva Singh Smith Stone Suzuki Tanaka Taylor Toth Vogel Walker Weber White Wilson Wong Young
""")

CITIES = listed("""
Athens Bergen Berlin Bern Bogota Boston Cairo Chicago Cork Delhi Denver Dublin Geneva Genoa Ghent Hanoi Helsinki Kyoto
Lagos Lima Lisbon London Lyon Madrid Malaga Manila Milan Nairobi Naples Oslo Ottawa Paris Porto Prague Quito Riga Rome
Seoul Seville Sofia Tokyo Toronto Tunis Turin Utrecht Vienna Warsaw Zurich
""")

GOODS = listed("""
apple bagel banana beans beer bread butter cake candy carrots cereal cheese cherries chicken chips chocolate coffee
cookie corn cream croissant cup donut eggs fish flour fries fruit garlic grapes ham honey jam juice ketchup lemon
lemonade lettuce milk mango muffin mushrooms mustard noodles nuts oil olives onions orange pancake pasta peach pear
pepper pie pizza plum popcorn potatoes rice roll rolls salad salmon salt sandwich sausage soap soda soup spinach steak
sugar sushi tacos tea toast tofu tomato tuna waffle water wine yogurt pencil paper glue tape stamps candle batteries
socks towel sponge
""")

MONTHS = listed("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")
DAYS = listed("Mon Tue Wed Thu Fri Sat Sun")

_ONSETS = listed("b c d f g h j k l m n p r s t v w z br cl dr fl gr pl pr sh sk st th tr qu")
_VOWELS = listed("a e i o u a e i o ai ea oo ou")
_CODAS = ["", "", "", *listed("n r l s t m k d x nd rt st ng ck")]
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def held_out(word: str) -> bool:
    """Whether training never draws this word."""
    return zlib.crc32(word.lower().encode()) % 5 == 0


def _parts(words: list[str]) -> dict[bool, list[str]]:
    return {seen: [word for word in words if held_out(word) != seen] for seen in (True, False)}


_POOLS = {id(pool): _parts(pool) for pool in (EVERYDAY, NAMES, SURNAMES, CITIES, GOODS)}


def pick(rng: random.Random, split: str, pool: list[str]) -> str:
    """A word of a pool: for training only seen ones, otherwise half of them unseen."""
    seen = split == "train" or rng.random() < 0.5
    return rng.choice(_POOLS[id(pool)][seen])


def invented(rng: random.Random) -> str:
    """A word that does not exist, so that reading cannot become guessing."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )


def cased(rng: random.Random, word: str) -> str:
    draw = rng.random()
    return word if draw < 0.4 else word.capitalize() if draw < 0.75 else word.upper()


def word(rng: random.Random, split: str) -> str:
    """An everyday word, a name or an invented word, in some case."""
    draw = rng.random()
    if draw < 0.5:
        return cased(rng, pick(rng, split, EVERYDAY))
    if draw < 0.65:
        return pick(rng, split, rng.choice((NAMES, SURNAMES, CITIES)))
    return cased(rng, invented(rng))


def code(rng: random.Random) -> str:
    """Letters and digits without meaning, such as a number plate has."""
    letters = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 4)))
    return rng.choice(("{0}{1}", "{0}-{1}", "{1}{0}", "{0} {1}")).format(letters, digits)


def marked(rng: random.Random, split: str) -> str:
    """A text with the rarer signs."""
    form = rng.choice(
        (
            "{0}!",
            "({0})",
            "{0} & {1}",
            "#{2}",
            "+{2}",
            "{0}, {1}",
            "{0}_{1}",
            "{0}; {1}",
            "{0}'s {1}",
            "{0}={2}",
            "{2}*",
        )
    )
    return form.format(word(rng, split), word(rng, split), rng.randint(1, 99))


def number(rng: random.Random) -> str:
    digits = rng.choice((1, 2, 2, 3, 3, 4, 5))
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def distinct(draw, count: int) -> list[str]:
    """count words that differ even in lower case, none of them part of another."""
    found: list[str] = []
    while len(found) < count:
        new = draw()
        if not any(new.lower() in old.lower() or old.lower() in new.lower() for old in found):
            found.append(new)
    return found


def price(rng: random.Random, most: int = 30) -> str:
    return f"{rng.randrange(most)}.{rng.choice(('00', '50', '20', '80', '95', '99', f'{rng.randrange(100):02d}'))}"


def date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2015, 2029)
    return rng.choice(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month:02d}/{day:02d}/{year}",
            f"{day} {MONTHS[month - 1]} {year}",
        )
    )


def time(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randrange(60):02d}"
