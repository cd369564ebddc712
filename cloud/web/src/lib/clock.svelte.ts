/** The time on the screen; ages tick with it. */

class Clock {
  now = $state(Date.now());

  constructor() {
    setInterval(() => {
      if (!document.hidden) this.now = Date.now();
    }, 1_000);
    document.addEventListener("visibilitychange", () => {
      this.now = Date.now();
    });
  }
}

export const clock = new Clock();
