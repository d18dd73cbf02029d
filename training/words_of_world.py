"""Questions and remarks that are not about any picture of the demo model's kind."""

from __future__ import annotations

import random

from training.pictures import words

WHOLE = words.listed(
    "hello|Hi|Hello, how are you?|Who are you?|What is your name?|Tell me a joke.|Thank you!|Good morning|"
    "Write a poem.|What is the meaning of life?|What will the weather be tomorrow?|Who took this photo?|"
    "Where was this photo taken?|Who painted this?|What happened before this?|What happens next?|Why is it so?|"
    "What is she thinking?|How old is he?|What song is playing?|How does it smell?|What is behind it?|"
    "Is this person happy?|Who is this?|What is he doing?|What breed is the dog?|Which country is this?|"
    "What brand is the car?|Translate it into French.|What year is it now?|How far is the moon?|"
    "How do I cook rice?|What is 17 times 23?|Who won the match?|Is it raining outside?|Are you sure?|"
    "What is the weather like?|How many people live here?|When was it built?|Who wrote this book?|"
    "Write some code.|What does it taste like?|How heavy is it?|What time is it in Tokyo?|Can you help me?|"
    "What is love?|Do you like it?|Give me a recipe.|What is the speed of light?|Who is the king?|"
    "Why did he leave?|Where do you come from?",
    "|",
)
ABOUT = words.listed(
    "Who is {name}?|Where does {name} live?|What is the capital of {country}?|How many people live in {city}?|"
    "Who wrote {title}?|How old is {name}?|What does {name} look like?|What is {name} wearing?|"
    "Why is {name} sad?|When was {city} founded?|How do I get to {city}?|What is the weather in {city}?|"
    "Is {city} in {country}?|What is a {thing}?|How do you make a {thing}?|Who invented the {thing}?|"
    "Can I buy a {thing} here?|Why do people like the {thing}?|What is the history of the {thing}?|"
    "Explain the {thing}.|How big can a {thing} get?",
    "|",
)
COUNTRIES = words.listed(
    "France Spain Italy Japan Brazil Egypt Kenya India China Peru Chile Norway Poland Greece Turkey Canada Mexico Cuba"
)


def question(rng: random.Random) -> str:
    text = rng.choice(WHOLE if rng.random() < 0.4 else ABOUT)
    return text.format(
        name=rng.choice(words.NAMES),
        city=rng.choice(words.CITIES),
        country=rng.choice(COUNTRIES),
        title=f"{rng.choice(words.EVERYDAY).capitalize()} and {rng.choice(words.EVERYDAY)}",
        thing=rng.choice(words.EVERYDAY),
    )
