/** The place shown now. */

import { type Route, format, parse } from "./route";

class Router {
  route = $state.raw<Route>(parse(location.hash));

  constructor() {
    addEventListener("hashchange", () => {
      const next = parse(location.hash);
      const moved = next.page !== this.route.page || format(next).split("?")[0] !== format(this.route).split("?")[0];
      this.route = next;
      if (moved) scrollTo(0, 0);
    });
  }

  go(route: Route) {
    location.hash = format(route);
  }

  /** Changes the address without a step in the history. */
  replace(route: Route) {
    history.replaceState(null, "", format(route));
    this.route = route;
  }
}

export const router = new Router();
