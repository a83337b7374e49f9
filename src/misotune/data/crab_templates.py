"""The templates and connectors with which the published Crab set renders constraints into the user text."""

from dataclasses import dataclass

MARKERS = ("- ", "# ", "* ", "> ")
INDENT = "    "

WHEN_ANSWERING = "\n\nWhen answering, please ensure that the following constraints are also met."
QUERY = "\n\nQuery:\n"


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A template whose own words stand before, between and after instruction and constraints."""

    name: str
    before: str
    between: str
    after: str = ""


# Twenty words of a template of its own are proof enough; the name is for the account.
WRAPPERS = (
    Wrapper(
        "follow-instructions",
        "Please follow the instructions below to generate your response. Additionally, make sure to adhere "
        "to the specific constraints mentioned.\n\nInstructions: ",
        "\n\nAdditional Constraints: ",
    ),
    Wrapper(
        "read-and-follow",
        "Please carefully read and follow the instructions below, along with the additional restrictions "
        "provided, to generate your response.\n\nInstructions: ",
        "\n\nAdditional Restrictions: ",
    ),
    Wrapper(
        "detailed-instructions",
        "Please ensure you read and follow the detailed instructions and additional constraints provided "
        "below to accurately address the query.\n\n- **Instructions**: ",
        "\n- **Additional Constraints**: ",
        "\n\nYour compliance with these guidelines is essential for a valid response.",
    ),
    Wrapper(
        "please-adhere",
        "To generate your response, please adhere to the following:\n1. **Instructions**: ",
        "\n2. **Additional Constraints**: ",
        "\n\nIt's important to follow these guidelines closely to ensure your response is appropriate.",
    ),
    Wrapper(
        "we-invite-you",
        "We invite you to respond by carefully considering the instructions and constraints outlined below. "
        "Your thoughtful adherence to these guidelines will greatly enhance the quality of your response.\n\n"
        "- **Instructions**: ",
        "\n- **Additional Constraints**: ",
        "\n\nThank you for your attention to detail!",
    ),
    Wrapper(
        "hey-there",
        "Hey there! We'd love for you to take a crack at this by following the steps and rules below:\n"
        "- Here's what you need to do: ",
        "\n- Just a couple of things to keep in mind: ",
        "\n\nCan't wait to see what you come up with!",
    ),
)
