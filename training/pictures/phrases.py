"""How things are asked. A group of phrases is named "task/what"; {slots} are filled by the scene."""

from __future__ import annotations

import random
import re

from training.pictures.words import listed

PHRASES: dict[str, list[str]] = {
    "existence/thing": [
        "Is there {a_thing}?",
        "Is there {a_thing} in the picture?",
        "Can you see {a_thing}?",
        "Does the picture show {a_thing}?",
        "Do you see {a_thing} here?",
    ],
    "existence/colour": [
        "Is there {a_colour} shape?",
        "Is any shape {colour}?",
        "Is one of the shapes {colour}?",
        "Do you see any {colour} shape?",
    ],
    "existence/word": [
        'Is the word "{word}" in the picture?',
        'Does it say "{word}" anywhere?',
        'Can you read "{word}" somewhere?',
        'Is "{word}" written in the image?',
    ],
    "existence/item": [
        "Is {word} on the list?",
        'Is there a line for "{word}"?',
        "Does it list {word}?",
    ],
    "existence/control": [
        'Is there {a_thing} called "{word}"?',
        'Does it have {a_thing} named "{word}"?',
        "Is there {a_thing} {word}?",
    ],
    "count/things": [
        "How many {things} are there?",
        "How many {things} can you see?",
        "Count the {things}.",
        "How many {things} are in the picture?",
        "What is the number of {things}?",
    ],
    "attribute/colour": [
        "What color is the {thing}?",
        "What colour is the {thing}?",
        "Which color does the {thing} have?",
        "Tell me the color of the {thing}.",
    ],
    "attribute/shape": [
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} thing?",
        "What is the {colour} shape?",
        "What kind of shape is {colour}?",
    ],
    "attribute/biggest": [
        "What is the {most} shape?",
        "Which shape is the {most}?",
        "What kind of shape is the {most} one?",
    ],
    "attribute/biggest colour": [
        "What color is the {most} shape?",
        "What colour is the {most} one?",
        "What is the color of the {most} shape?",
    ],
    "attribute/bigger": [
        "Which is {more}, the {thing} or the {other}?",
        "What is {more}, the {thing} or the {other}?",
    ],
    "attribute/is colour": [
        "Is the {thing} {colour}?",
        "Is the color of the {thing} {colour}?",
    ],
    "attribute/text colour": [
        'What color is the word "{word}"?',
        'In which color is "{word}" written?',
        "What colour is {word} written in?",
    ],
    "attribute/panel colour": [
        'What color is the {panel} that says "{word}"?',
        'What colour is the {panel} with "{word}"?',
        'Which color is the {panel} with the text "{word}"?',
        "What is the color of the {panel} {word}?",
    ],
    "attribute/bar colour": [
        'What color is the {bar} for "{word}"?',
        "What colour is the {bar} of {word}?",
        "Which color stands for {word}?",
    ],
    "relation/is": [
        "Is the {thing} {side} the {other}?",
        "Is the {thing} placed {side} the {other}?",
    ],
    "relation/which side": [
        "Is the {thing} left or right of the {other}?",
        "On which side of the {other} is the {thing}, left or right?",
    ],
    "relation/which height": [
        "Is the {thing} above or below the {other}?",
        "Which is it: is the {thing} above or below the {other}?",
    ],
    "relation/neighbour": [
        "What is {side} the {thing}?",
        "Which shape is directly {side} the {thing}?",
        "What do you see {side} the {thing}?",
    ],
    "relation/place": [
        "What is in the {place}?",
        "What shape is in the {place}?",
        "Which shape is in the {place}?",
    ],
    "relation/inside": [
        "What is inside the {frame}?",
        "Which shape is in the {frame}?",
        "What does the {frame} contain?",
    ],
    "relation/is inside": [
        "Is the {thing} inside the {frame}?",
        "Is the {thing} in the {frame}?",
        "Does the {frame} contain the {thing}?",
    ],
    "relation/further": [
        "Which is further {direction}, the {thing} or the {other}?",
        "Which one is further {direction}: the {thing} or the {other}?",
    ],
    "relation/word": [
        'What is {side} the word "{word}"?',
        "Which shape is {side} {word}?",
        'What shape is {side} the text "{word}"?',
    ],
    "reading/near": [
        "What word is {side} the {thing}?",
        "What is written {side} the {thing}?",
        "Which word is {side} the {thing}?",
        "What does it say {side} the {thing}?",
    ],
    "reading/place": [
        "What word is at the {place}?",
        "What is written at the {place}?",
        "What does it say at the {place}?",
        "Read the word at the {place}.",
    ],
    "reading/panel": [
        "What does the {panel} say?",
        "What is written on the {panel}?",
        "What is the text in the {panel}?",
        "Read the {panel}.",
    ],
    "reading/panel number": [
        "What number is written in the {panel}?",
        "What number is in the {panel}?",
        "Which number is on the {panel}?",
    ],
    "reading/number": [
        "What number is in the picture?",
        "Which number do you see?",
        "What is the number?",
        "Read the number.",
    ],
    "reading/text": [
        "What is the text?",
        "What does it say?",
        "What is written here?",
        "What word is in the picture?",
        "What does the sign say?",
    ],
    "reading/coloured": [
        "What does the {colour} text say?",
        "What is written in {colour}?",
        "Which word is {colour}?",
    ],
    "reading/line": [
        "What does the {nth} line say?",
        "Read the {nth} line.",
        "What is written in the {nth} line?",
    ],
    "reading/word of line": [
        "What is the {nth} word of the {nth_line} line?",
        "Which word comes {nth} in the {nth_line} line?",
    ],
    "reading/next word": [
        'Which word comes after "{word}"?',
        'What is the next word after "{word}"?',
        "What word follows {word}?",
    ],
    "reading/letter": [
        "With which letter does the {nth} line begin?",
        "What is the first letter of the {nth} line?",
    ],
    "reading/extreme number": [
        "What is the {most} number?",
        "Which number is the {most}?",
        "Read the {most} number.",
    ],
    "chart/value": [
        "What is the value of {word}?",
        "How much is {word}?",
        'What value does "{word}" have?',
        "What is the value for {word}?",
        "How high is {word}?",
    ],
    "chart/share": [
        "What is the share of {word}?",
        "What percentage is {word}?",
        "How many percent does {word} have?",
        "How large is the share of {word}?",
    ],
    "chart/extreme": [
        "Which one is the {most}?",
        "Which {bar} is the {most}?",
        "What has the {most} value?",
        "Which label has the {most} value?",
    ],
    "chart/extreme value": [
        "What is the {most} value?",
        "How much is the {most} value?",
    ],
    "chart/which": [
        "Which one has the value {value}?",
        "Which {bar} is {value}?",
        "What has a value of {value}?",
    ],
    "chart/title": [
        "What is the title of the chart?",
        "What is the chart about?",
        "What does the title say?",
        "What is this chart called?",
    ],
    "chart/compare": [
        "Which is {more}, {word} or {other}?",
        "Which one is {more}: {word} or {other}?",
        "Which has the {more} value, {word} or {other}?",
    ],
    "chart/place": [
        "What is the {nth} label?",
        "What is the name of the {nth} {bar}?",
        "Which label comes {nth}?",
    ],
    "chart/colour": [
        "What does the {colour} {bar} stand for?",
        "Which label has the {colour} {bar}?",
        "What is the label of the {colour} {bar}?",
    ],
    "chart/trend": [
        "Does it go up or down from {word} to {other}?",
        "Is the line going up or down from {word} to {other}?",
    ],
    "document/total": [
        "What is the total?",
        "How much is the total?",
        "What do I have to pay?",
        "What is the total amount?",
        "How much did it cost in total?",
        "What is the sum?",
    ],
    "document/price": [
        "How much is the {word}?",
        "What does the {word} cost?",
        "What is the price of {word}?",
        "How much does {word} cost?",
    ],
    "document/which price": [
        "What costs {value}?",
        "Which item costs {value}?",
        "What was bought for {value}?",
    ],
    "document/extreme": [
        "What is the most expensive item?",
        "Which item costs the most?",
        "What was the most expensive?",
    ],
    "document/cheapest": [
        "What is the cheapest item?",
        "Which item costs the least?",
        "What was the cheapest?",
    ],
    "document/shop": [
        "What is the name of the shop?",
        "Which shop is it?",
        "Which store is this receipt from?",
        "Where was this bought?",
        "What is the shop called?",
    ],
    "document/date": [
        "What is the date?",
        "What date is on it?",
        "When was it?",
        "Which date does it show?",
    ],
    "document/time": [
        "What is the time?",
        "What time is on it?",
        "At what time was it?",
    ],
    "document/field": [
        "What is the {field}?",
        "What does it say for {field}?",
        "Which {field} is given?",
        "What is written under {field}?",
        "Tell me the {field}.",
    ],
    "document/which field": [
        'What is "{word}"?',
        'Which field says "{word}"?',
        'Which entry has the value "{word}"?',
    ],
    "document/title": [
        "What is the title?",
        "What is the title of the document?",
        "What is the heading?",
        "What does it say at the top?",
    ],
    "document/cell": [
        "What is the {field} of {word}?",
        "What is the {field} for {word}?",
        "Which {field} does {word} have?",
        "What {field} does {word} have?",
    ],
    "document/row": [
        "Who or what has the {field} {value}?",
        "Which row has the {field} {value}?",
        "What has the {field} {value}?",
    ],
    "document/nth": [
        "What is in the {nth} row?",
        "What is the {nth} entry?",
        "Which item comes {nth}?",
        "What is the {nth} item?",
    ],
    "document/quantity": [
        "How many {word} were bought?",
        "What is the quantity of {word}?",
        "How many {word} are on the receipt?",
    ],
    "document/sender": [
        "Who is the {role}?",
        "What is the name of the {role}?",
        "Who is given as {role}?",
    ],
    "interface/title": [
        "What is the title of the window?",
        "What is the window called?",
        "What does the title bar say?",
        "Which window is open?",
    ],
    "interface/button": [
        "Which button is on the {side}?",
        "What does the {side} button say?",
        "What is on the {side} button?",
        "What is the label of the {side} button?",
    ],
    "interface/coloured button": [
        "What does the {colour} button say?",
        "Which button is {colour}?",
        "What is written on the {colour} button?",
    ],
    "interface/only button": [
        "What does the button say?",
        "Which button can I press?",
        "What is written on the button?",
    ],
    "interface/checked": [
        'Is "{word}" checked?',
        "Is {word} checked?",
        'Is the box "{word}" ticked?',
        "Is {word} turned on?",
        "Is {word} selected?",
    ],
    "interface/which checked": [
        "Which option is {state}?",
        "Which one is {state}?",
        "What is {state}?",
    ],
    "interface/selected": [
        "Which option is selected?",
        "What is selected?",
        "Which one is chosen?",
    ],
    "interface/tab": [
        "Which tab is open?",
        "Which tab is active?",
        "What tab is selected?",
        "What is the active tab?",
    ],
    "interface/menu": [
        "What is the {nth} menu?",
        "Which menu comes {nth}?",
        "What is the {nth} menu called?",
    ],
    "interface/entry": [
        "What is the {nth} entry?",
        "Which entry comes {nth}?",
        "What is the {nth} line of the menu?",
    ],
    "interface/highlighted": [
        "Which entry is highlighted?",
        "What is highlighted?",
        "Which line of the menu is marked?",
    ],
    "interface/field": [
        "What is in the {field} field?",
        "What was typed into {field}?",
        "What is written in the field {field}?",
        "What {field} was entered?",
    ],
    "interface/message": [
        "What does the message say?",
        "What is the message?",
        "Read the message.",
        "What is the text of the message?",
    ],
    "interface/error": [
        "What is the error code?",
        "Which error is it?",
        "What is the number of the error?",
        "Which error code is shown?",
    ],
    "interface/percent": [
        "How many percent are done?",
        "What is the progress?",
        "How far is it?",
        "What percentage is shown?",
    ],
    "interface/setting": [
        "What is {word} set to?",
        "What is the value of {word}?",
        'Which value does "{word}" have?',
    ],
    "caption/picture": [
        "Describe the picture.",
        "What is in the picture?",
        "What do you see?",
        "What does the image show?",
        "What is this?",
        "Describe this image briefly.",
    ],
    "transcribe/line": [
        "Write down the {nth} line.",
        "Transcribe the {nth} line.",
        "Copy the {nth} line of text.",
    ],
    "transcribe/all": [
        "Write down all the text.",
        "Transcribe the text in the picture.",
        "Read everything that is written.",
        "Copy the text.",
    ],
}

NTH = ("first", "second", "third", "fourth", "fifth", "sixth")
# Answers and slots that come from no template and from no word list.
FILLERS = listed(
    "yes no left right above below up down of to the top bottom middle center corner red green blue yellow orange "
    "purple pink brown black white gray circle square triangle star diamond heart cross ring shape circles squares "
    "triangles stars diamonds hearts crosses rings shapes biggest smallest largest highest lowest higher lower bigger "
    "smaller larger bar bars point points slice slices line lines box boxes sign signs panel panels frame word words "
    "number numbers item items row rows column columns button buttons checkbox checkboxes tab tabs menu menus option "
    "options field fields entry entries checked unchecked switch not turned on off one first second third fourth "
    "fifth sixth last a an and with from in receipt form table ticket invoice letter chart pie window dialog page "
    "screen settings error titled called text sender recipient inside outside 0 1 2 3 4 5 6 7 8 9 10"
)


def an(words: str) -> str:
    return ("an " if words[0] in "aeiouAEIOU" else "a ") + words


def phrase(rng: random.Random, name: str, slots: dict[str, str]) -> str:
    """One of the ways to ask, as a person would type it: now and then carelessly."""
    text = rng.choice(PHRASES[name])
    draw = rng.random()
    if draw < 0.25:  # before the slots are filled: what is read keeps its case
        text = text[0].lower() + text[1:] if text[0] != "{" else text
    if draw < 0.15 or draw > 0.95:
        text = text.rstrip("?.")
    return text.format(**slots)


def template_words() -> list[str]:
    """Every word that questions and fixed answers are made of, without what is read off pictures."""
    texts = [re.sub(r"\{\w+\}", " ", text) for group in PHRASES.values() for text in group]
    found = {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    careless = {word[0].lower() + word[1:] for word in found}
    return sorted(found | careless | set(FILLERS))
