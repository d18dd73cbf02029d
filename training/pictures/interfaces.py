"""Windows with buttons, fields, boxes to tick, tabs and menus."""

from __future__ import annotations

from training.pictures import colours, words
from training.pictures.canvas import Box, Canvas, NoRoomError
from training.pictures.colours import RGB, SIZE
from training.pictures.documents import field_value
from training.pictures.phrases import NTH
from training.pictures.quiz import Quiz

BUTTONS = words.listed(
    "OK Cancel Save Open Close Yes No Apply Back Next Help Send Delete Retry Skip Login Start Stop Print Edit Copy Add "
    "Accept Reject Update Install Search Share Download Upload"
)
TITLES = words.listed(
    "Settings|Login|Save file|Open file|Print|Update|Error|Warning|Network|Account|Sound|Display|Backup|Search|Profile|"
    "Install|Message|Calendar|Downloads|Options|Printer|Privacy|About|Help|Camera|Contacts|Music player|New folder",
    "|",
)
OPTIONS = words.listed(
    "Remember me|Dark mode|Sound|Wi-Fi|Bluetooth|Auto save|Updates|Show grid|Notifications|Location|Airplane mode|"
    "Backup|Spell check|Full screen|Autoplay|Read only|Send report|Show hidden|Mute|Night light|Cookies|Sync|Zoom|"
    "Large text|Status bar|Word wrap|Vibration|Hotspot|Subtitles|Repeat",
    "|",
)
MENUS = words.listed("File Edit View Insert Format Tools Window Help Go Run Image Layer Select Table Play Project")
TABS = words.listed("General Display Sound Network Users Colors Advanced Fonts Keys Mail Files Logs Media Home Search")
ENTRIES = words.listed(
    "New|Open|Save|Save as|Print|Close|Undo|Redo|Cut|Copy|Paste|Find|Replace|Rename|Delete|Share|Export|Import|Zoom in|"
    "Zoom out|Refresh|Quit|Duplicate|Properties|Select all|Move up|Move down",
    "|",
)
MESSAGES = words.listed(
    "File not found|Disk is full|No connection|Wrong password|Access denied|Saved|Save changes?|Delete this file?|"
    "Printer offline|Out of paper|Update ready|Battery low|Try again later|Are you sure?|Server is busy|Upload failed|"
    "Download complete|Invalid code|Please wait|Session expired|Name is required|Restart now?|Too many users",
    "|",
)
INPUTS = ("Name", "Email", "City", "Phone", "Code", "Room", "Street", "Date", "Age", "Team", "Number")
SETTINGS = ("Language", "Volume", "Speed", "Size", "Theme", "Quality", "Region", "Mode", "Level", "Brightness", "Timer")


class Window:
    """A window and where its next row begins."""

    def __init__(self, canvas: Canvas, quiz: Quiz, least: int = 210):
        self.canvas, self.quiz, rng = canvas, quiz, canvas.rng
        width, height = rng.randint(240, 308), rng.randint(least, 300)
        x, y = rng.randint(4, SIZE - 4 - width), rng.randint(4, SIZE - 4 - height)
        self.box: Box = (x, y, x + width, y + height)
        self.title = rng.choice(TITLES) if rng.random() < 0.6 else words.word(rng, canvas.split)
        dark = rng.random() < 0.25
        self.body: RGB = rng.choice(
            [(44, 46, 52), (32, 34, 40)] if dark else [(252, 252, 252), (240, 240, 240), (236, 240, 245)]
        )
        self.ink: RGB = (240, 240, 240) if dark else (25, 25, 25)
        canvas.draw.rounded_rectangle(
            (x, y, x + width - 1, y + height - 1), rng.choice((0, 6)), self.body, (100, 100, 100)
        )
        canvas.shapes.append(("window", "black" if dark else "white", *self.box))
        canvas.paper = self.body
        self.bar = rng.randint(24, 32)
        tint = rng.choice(("blue", "gray", "black", "white", "green", "purple"))
        rgb = canvas.panel((x, y, x + width, y + self.bar), tint, "panel")
        face = canvas.fitting(self.title, width - 70, rng.randint(16, 20))
        ink = colours.plain_ink(rgb)
        if rng.random() < 0.4:
            canvas.centred((x, y, x + width, y + self.bar), self.title, face, ink)
        else:
            canvas.text(x + 10, y + (self.bar - face.height) / 2, self.title, face, ink)
        cross = (x + width - 20, y + self.bar // 2 - 5)
        canvas.draw.line((*cross, cross[0] + 10, cross[1] + 10), ink, 2)
        canvas.draw.line((cross[0], cross[1] + 10, cross[0] + 10, cross[1]), ink, 2)
        self.y = y + self.bar + 10
        self.left, self.right = x + 14, x + width - 14
        self.face = canvas.face(rng.randint(15, 19), False)
        quiz.add("interface/title", self.title)

    @property
    def bottom(self) -> int:
        return self.box[3] - 10


def buttons(window: Window, count: int) -> None:
    """A row of buttons at the bottom."""
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    names = words.distinct(
        lambda: rng.choice(BUTTONS) if rng.random() < 0.8 else words.word(rng, canvas.split).capitalize(), count
    )
    face = canvas.face(rng.randint(15, 18))
    room = (window.right - window.left - 8 * (count - 1)) // count
    if max(face.width(name) for name in names) > room - 8:
        raise NoRoomError
    room = min(room, 110)
    width = count * (room + 8) - 8
    start = rng.choice((window.left, window.right - width))
    if canvas.unseen():
        start = (window.left + window.right - width) // 2
    height = face.height + 10
    window.box = (*window.box[:3], window.box[3] - height - 6)
    top = window.bottom + 4
    tints = rng.sample(["blue", "green", "red", "orange", "gray", "purple", "black"], count)
    coloured = rng.random() < 0.5
    for index, name in enumerate(names):
        box = (start + index * (room + 8), top, start + index * (room + 8) + room, top + height)
        if coloured:
            rgb = canvas.panel(box, tints[index], "button", 4)
        else:
            canvas.draw.rounded_rectangle((*box[:2], box[2] - 1, box[3] - 1), 4, window.body, (125, 125, 125))
            canvas.shapes.append(("button", "gray", *box))
            rgb = window.body
        canvas.centred(box, name, face, colours.plain_ink(rgb))
        if coloured and count > 1:
            quiz.add("interface/coloured button", name, colour=tints[index])
            quiz.add("attribute/panel colour", tints[index], panel="button", word=name)
    if count == 1:
        quiz.add("interface/only button", names[0])
    else:
        quiz.add("interface/button", names[0], side="left")
        quiz.add("interface/button", names[-1], side="right")
    if count == 3:
        quiz.add("interface/button", names[1], side="middle")
    quiz.add("count/things", count, things="buttons")
    there = quiz.coin()
    other = rng.choice(BUTTONS)
    if there or other not in names:
        quiz.add(
            "existence/control",
            "yes" if there else "no",
            a_thing="a button",
            word=rng.choice(names) if there else other,
        )
    if count > 1:
        (a, x), (b, y) = rng.sample(list(zip(names, range(count), strict=True)), 2)
        quiz.add("relation/which side", "left" if x < y else "right", thing=f"{a} button", other=f"{b} button")


def tick(canvas: Canvas, x: int, y: int, on: bool, ink: RGB, style: str) -> None:
    """A box to tick, a radio button or a switch, 14 pixels high."""
    if style == "switch":
        canvas.draw.rounded_rectangle((x, y, x + 25, y + 13), 7, (60, 170, 90) if on else (160, 160, 160))
        at = x + 13 if on else x + 1
        canvas.draw.ellipse((at, y + 1, at + 11, y + 12), (255, 255, 255))
        box = (x, y, x + 26, y + 14)
    elif style == "radio":
        canvas.draw.ellipse((x, y, x + 13, y + 13), None, ink, 1)
        if on:
            canvas.draw.ellipse((x + 3, y + 3, x + 10, y + 10), ink)
        box = (x, y, x + 14, y + 14)
    else:
        canvas.draw.rectangle((x, y, x + 13, y + 13), None, ink, 1)
        if on:
            canvas.draw.line((x + 3, y + 7, x + 6, y + 10, x + 11, y + 3), ink, 2)
        box = (x, y, x + 14, y + 14)
    canvas.shapes.append(("checked" if on else "unchecked", "gray", *box))


def ticks(window: Window) -> None:
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    style = rng.choice(("box", "box", "radio", "switch"))
    pitch = window.face.height + rng.randint(8, 14)
    count = min(rng.randint(2, 5), (window.bottom - window.y) // pitch)
    if count < 2:
        return
    names = words.distinct(
        lambda: rng.choice(OPTIONS) if rng.random() < 0.8 else words.word(rng, canvas.split).capitalize(), count
    )
    chosen = rng.randrange(count)
    states = [index == chosen if style == "radio" else rng.random() < 0.5 for index in range(count)]
    at_right = style == "switch" and rng.random() < 0.7
    for name, on in zip(names, states, strict=True):
        y = window.y + (window.face.height - 14) // 2
        tick(canvas, window.right - 28 if at_right else window.left, y, on, window.ink, style)
        x = window.left if at_right else window.left + (34 if style == "switch" else 22)
        canvas.text(x, window.y, name, window.face, window.ink)
        window.y += pitch
    if style == "radio":
        quiz.add("interface/selected", names[chosen])
    words_for = ("on", "off") if style == "switch" else ("checked", "unchecked")
    for value in (True, False):
        if style != "radio" and states.count(value) == 1:
            quiz.add("interface/which checked", names[states.index(value)], state=words_for[not value])
    wanted = quiz.coin()
    fitting = [name for name, on in zip(names, states, strict=True) if on == wanted]
    if fitting:
        quiz.add("interface/checked", "yes" if wanted else "no", word=rng.choice(fitting))
    things = "options"
    if style == "box":
        things = rng.choice(("checkboxes", "boxes"))
        quiz.add("count/things", sum(states), things=f"checked {things}")
    if style == "switch":
        things = "switches"
        quiz.add("count/things", sum(states), things="switches that are on")
    quiz.add("count/things", count, things=things)


def inputs(window: Window) -> None:
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    names = rng.sample(INPUTS, rng.randint(1, 3))
    column = window.left + max(window.face.width(name) for name in names) + 12
    pitch = window.face.height + 16
    for name in names:
        value = field_value(canvas, name)
        if column + window.face.width(value) + 8 > window.right or window.y + pitch > window.bottom:
            continue
        canvas.text(window.left, window.y + 3, name, window.face, window.ink)
        box = (column, window.y - 1, window.right, window.y + window.face.height + 7)
        canvas.draw.rectangle(box, (255, 255, 255), (130, 130, 130))
        canvas.text(column + 5, window.y + 3, value, window.face, (20, 20, 20))
        quiz.add("interface/field", value, field=name.lower() if quiz.coin() else name)
        window.y += pitch


def settings(window: Window) -> None:
    """Names on the left, values on the right."""
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    pitch = window.face.height + rng.randint(9, 16)
    count = min(rng.randint(2, 5), (window.bottom - window.y) // pitch)
    for name in rng.sample(SETTINGS, max(0, count)):
        value = rng.choice((words.number(rng), words.word(rng, canvas.split), f"{rng.randint(0, 100)}%"))
        if window.face.width(name + value) > window.right - window.left - 12:
            continue
        canvas.text(window.left, window.y, name, window.face, window.ink)
        canvas.right(window.right, window.y, value, window.face, window.ink)
        quiz.add("interface/setting", value, word=name.lower() if quiz.coin() else name)
        window.y += pitch
        canvas.draw.line((window.left, window.y - 5, window.right, window.y - 5), (150, 150, 150), 1)


def message(window: Window) -> None:
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    text = (
        rng.choice(MESSAGES)
        if rng.random() < 0.6
        else " ".join(words.word(rng, canvas.split) for _ in range(rng.randint(2, 3)))
    )
    face = canvas.fitting(text, window.right - window.left, rng.randint(15, 19), bold=False)
    if face.width(text) > window.right - window.left or window.y + face.height > window.bottom:
        return
    canvas.text(window.left, window.y, text, face, window.ink)
    quiz.add("interface/message", text)
    window.y += face.height + 10
    if rng.random() < 0.5 and window.y + face.height < window.bottom:
        code = str(rng.randint(2, 999)) if rng.random() < 0.7 else words.code(rng)
        canvas.text(window.left, window.y, rng.choice(("Error code: ", "Error ", "Code: ")) + code, face, window.ink)
        quiz.add("interface/error", code)
        window.y += face.height + 10


def progress(window: Window) -> None:
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    if window.y + 50 > window.bottom:
        return
    percent = rng.randint(1, 99)
    label = rng.choice(("Copying", "Loading", "Installing", "Uploading", "Saving")) + f" {percent}%"
    canvas.text(window.left, window.y, label, window.face, window.ink)
    y = window.y + window.face.height + 6
    canvas.draw.rectangle((window.left, y, window.right, y + 12), (205, 205, 205), (120, 120, 120))
    reach = window.left + round((window.right - window.left) * percent / 100)
    canvas.panel((window.left, y, reach, y + 12), rng.choice(("blue", "green")), "bar")
    quiz.add("interface/percent", f"{percent}%")
    window.y = y + 24


def tabs(window: Window) -> None:
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    names = rng.sample(TABS, rng.randint(2, 4))
    face = window.face
    widths = [face.width(name) + 16 for name in names]
    if sum(widths) > window.right - window.left:
        return
    chosen, x = rng.randrange(len(names)), window.left
    underlined = rng.random() < 0.4
    accent = colours.shade(rng, rng.choice(("blue", "orange", "green")))
    for index, (name, width) in enumerate(zip(names, widths, strict=True)):
        box = (x, window.y, x + width, window.y + face.height + 10)
        ink = window.ink
        if underlined:
            if index == chosen:
                canvas.draw.rectangle((box[0], box[3] - 4, box[2], box[3]), accent)
        elif index == chosen:
            canvas.draw.rectangle(box, accent)
            ink = colours.plain_ink(accent)
        else:
            canvas.draw.rectangle(box, None, (130, 130, 130))
        canvas.centred(box, name, face, ink)
        x += width
    window.y += face.height + 20
    quiz.add("interface/tab", names[chosen])
    quiz.add("count/things", len(names), things="tabs")


def menu_bar(window: Window) -> None:
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    names = rng.sample(MENUS, rng.randint(3, 5))
    while sum(window.face.width(name) + 14 for name in names) > window.right - window.left:
        names.pop()
    x = window.left
    for index, name in enumerate(names):
        canvas.text(x, window.y - 4, name, window.face, window.ink)
        x += window.face.width(name) + 14
        quiz.add("interface/menu", name, nth=NTH[index])
    quiz.add("interface/menu", names[-1], nth="last")
    quiz.add("count/things", len(names), things="menus")
    window.y += window.face.height + 2
    canvas.draw.line((window.box[0] + 1, window.y, window.box[2] - 2, window.y), (150, 150, 150), 1)
    window.y += 8


def entry_list(window: Window) -> None:
    """An open menu with one entry highlighted."""
    canvas, quiz, rng = window.canvas, window.quiz, window.canvas.rng
    pitch = window.face.height + rng.randint(5, 10)
    count = min(rng.randint(3, 6), (window.bottom - window.y) // pitch)
    if count < 2:
        return
    names = rng.sample(ENTRIES, count)
    width = max(window.face.width(name) for name in names) + rng.randint(24, 60)
    chosen = rng.randrange(count)
    left = window.left + rng.randint(0, max(0, window.right - window.left - width))
    canvas.draw.rectangle((left, window.y, left + width, window.y + count * pitch + 4), window.body, (130, 130, 130))
    accent = colours.shade(rng, rng.choice(("blue", "green", "purple", "orange")))
    for index, name in enumerate(names):
        y = window.y + 2 + index * pitch
        ink = window.ink
        if index == chosen:
            canvas.draw.rectangle((left + 1, y, left + width - 1, y + pitch), accent)
            ink = colours.plain_ink(accent)
        canvas.text(left + 10, y + (pitch - window.face.height) / 2, name, window.face, ink)
        quiz.add("interface/entry", name, nth=NTH[index])
    quiz.add("interface/highlighted", names[chosen])
    quiz.add("count/things", count, things="entries")
    window.y += count * pitch + 12


def _ask_screen(window: Window, name: str) -> None:
    window.quiz.add("caption/picture", f"a {name} titled {window.title}")
    window.quiz.add("transcribe/line", window.title, nth="first")
    there = window.quiz.coin()
    rng = window.canvas.rng
    other = words.word(rng, window.canvas.split)
    written = "".join(char for char, *_ in window.canvas.chars).lower()
    if there or other.lower() not in written:
        window.quiz.add("existence/word", "yes" if there else "no", word=window.title if there else other)


def dialog(canvas: Canvas, quiz: Quiz) -> None:
    window = Window(canvas, quiz, 150)
    buttons(window, canvas.rng.choice((1, 2, 2, 3)))
    message(window)
    if canvas.rng.random() < 0.3:
        progress(window)
    if canvas.rng.random() < 0.4:
        ticks(window)
    _ask_screen(window, "dialog")


def entry_form(canvas: Canvas, quiz: Quiz) -> None:
    window = Window(canvas, quiz)
    buttons(window, canvas.rng.choice((1, 2, 2, 3)))
    inputs(window)
    ticks(window)
    _ask_screen(window, "window")


def options(canvas: Canvas, quiz: Quiz) -> None:
    window = Window(canvas, quiz, 230)
    if canvas.rng.random() < 0.6:
        tabs(window)
    buttons(window, canvas.rng.choice((1, 2, 3)))
    if canvas.rng.random() < 0.5:
        settings(window)
    ticks(window)
    _ask_screen(window, "window")


def editor(canvas: Canvas, quiz: Quiz) -> None:
    window = Window(canvas, quiz, 240)
    menu_bar(window)
    entry_list(window)
    if canvas.rng.random() < 0.5:
        progress(window)
    else:
        message(window)
    _ask_screen(window, "window")
