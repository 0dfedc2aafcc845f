"""JSON extraction: many texts behind the same instructions, each answer an object of a schema.

The variable is the object, not its text. For the same with a regular expression see extraction.py.
"""

import jaxsgl as sgl

INSTRUCTIONS = """You turn announcements into JSON objects with these members.
- "event": what takes place, in a few words, as the announcement calls it.
- "place": where it takes place. If several places are named, the one where it begins.
- "day": the day of the week, in English.
- "hour": the hour at which it begins, from 0 to 23, as a number.
- "is_free": whether visitors pay nothing.
Write no other members, and no text before or after the object.

Announcement: On Sunday at three in the afternoon the choir of the church of St. Anne sings works
by Bach and Brahms in the church. Admission is free, donations are welcome.
JSON: {"event": "choir concert", "place": "St. Anne", "day": "Sunday", "hour": 15, "is_free": true}

Announcement: The flea market in Mill St. opens on Saturday at 8. Sellers pay ten dollars,
visitors nothing.
JSON: {"event": "flea market", "place": "Mill St.", "day": "Saturday", "hour": 8, "is_free": true}

Announcement: Doctor Brown speaks about sleep on Thursday at half past seven in the evening in the
town hall. Tickets for six dollars at the door.
JSON: {"event": "talk", "place": "town hall", "day": "Thursday", "hour": 19, "is_free": false}
"""
ANNOUNCEMENTS = (
    "The film club shows The Gold Rush in the old cinema on Friday at 8 in the evening. 5 dollars.",
    "Yoga for beginners, Monday at 9 in the morning in the city park. Free for everybody.",
    "The football teams of both schools meet on Wednesday at 16 o'clock on the north field. Free.",
    "A guided walk through the harbour starts on Sunday at 11 at the lighthouse. 8 dollars a head.",
    "The library reads stories to children on Saturday at 10 in the reading room. Free.",
    "Jazz at the Blue Cellar on Thursday, doors open at 21 o'clock, tickets for 15 dollars.",
    "The bakery in King Street teaches bread baking on Tuesday at 17 o'clock for 30 dollars.",
    "On Friday at 7 in the morning bird watchers meet at the lake. It costs nothing.",
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SCHEMA = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "maxLength": 40},
        "place": {"type": "string", "maxLength": 30},
        "day": {"enum": DAYS},
        "hour": {"type": "integer", "minimum": 0, "maximum": 23},
        "is_free": {"type": "boolean"},
    },
    "required": ["event", "place", "day", "hour", "is_free"],
    "additionalProperties": False,
}


@sgl.function
def extract(s, announcement):
    s += INSTRUCTIONS
    s += f"\nAnnouncement: {announcement}\nJSON: "
    s += sgl.gen("fields", max_tokens=96, json_schema=SCHEMA)


def run(backend=None) -> list[str]:
    """A line per announcement."""
    states = extract.run_batch([(text,) for text in ANNOUNCEMENTS], backend=backend, temperature=0)
    objects = [state["fields"] for state in states]
    return [f"{each['day']}, {each['hour']}: {each['event']} ({each['place']})" for each in objects]


if __name__ == "__main__":
    print("\n".join(run()))
