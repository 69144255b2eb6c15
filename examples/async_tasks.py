"""Sandboxes from asyncio: many at once, each with a timeout, and killed if its task is cancelled.

python async_tasks.py
"""

import asyncio

import fastns
from fastns import Spec, Template


async def run(template: Template, args: list[str], timeout: float) -> tuple[int, str]:
    """Return the returncode of a command and its output.

    Kills the sandbox if this coroutine is cancelled, or after `timeout` seconds (TimeoutError).
    """
    sandbox = template.spawn(
        args, stdin=fastns.DEVNULL, stdout=fastns.PIPE, stderr=fastns.STDOUT, text=True
    )
    try:
        # communicate() waits in a thread; the kill below ends that wait.
        output, _ = await asyncio.wait_for(asyncio.to_thread(sandbox.communicate), timeout)
    except BaseException:
        sandbox.kill()
        raise
    assert sandbox.returncode is not None
    return sandbox.returncode, output


async def main() -> None:
    few = asyncio.Semaphore(4)

    async def square(template: Template, number: int) -> int:
        async with few:
            _, output = await run(template, ["sh", "-c", f"echo $(({number} * {number}))"], 10)
        return int(output)

    with Template(Spec(max_output="64k")) as template:
        print(await asyncio.gather(*(square(template, number) for number in range(10))))
        try:
            await run(template, ["sleep", "60"], timeout=0.2)
        except TimeoutError:
            print("too long")
        task = asyncio.create_task(run(template, ["sleep", "60"], timeout=60))
        await asyncio.sleep(0.1)
        task.cancel()
        print(
            "cancelled:",
            isinstance(
                (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
            ),
        )


if __name__ == "__main__":
    asyncio.run(main())
